"""Ordered, streaming work on several processes, in which an item that fails never takes the run with it.

    for result in map_processes(clean, records, workers=8, chunk_size=32):
        if isinstance(result, Failure): ...   # stands where the item's result would stand

The standard pools stop or hang when a worker is killed (memory, a crash in a C library). Here the item at fault is
found and reported, and the rest goes on. Memory is bounded by the window of chunks under way, whatever comes in.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = functools.partial[list[Any]]  # (index of the first item, items) -> a result for each

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CHUNKS_PER_WORKER = 3  # one being worked on, two waiting: workers stay busy while the caller writes
MAX_DEATHS_IN_A_ROW = 20  # without one finished chunk between them: the machine is at fault, not an item


@dataclass(frozen=True, slots=True)
class Failure:
    """Stands in the results in the place of an item that raised, or that killed or outlasted its worker."""

    index: int  # of the item
    error: str  # "ValueError: bad cell", "worker killed by signal 9"
    where: str = ""  # "cif.py:120 in parse_cif"

    def __str__(self) -> str:
        return f"{self.error} ({self.where})" if self.where else self.error


class WorkerError(RuntimeError):
    """No worker can do the work: it did not start, or workers die one after the other."""


def available_cores() -> int:
    """Cores this process may use, which a container or a batch system can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    chunk_size: int = 16,
    *,
    start_method: str | None = None,
    timeout_s: float | None = None,
    whole_chunks: bool = False,
) -> Iterator[Result | Failure]:
    """`function(item)` for each item, in order, as it becomes ready.

    `whole_chunks`: the function takes a list of items and gives as many results, for work that goes better together;
    where it raises, the items are given to it one by one.

    `workers` None is one a core, 0 works in this process. `items` is read as far as the window of chunks under way;
    an iterator that has ended is asked again when results have come. `timeout_s` is the time for one item;
    `start_method` None is "spawn", which is safe beside threads and torch. An exception raised by `items` itself, or by
    the caller, ends the run as usual.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    workers = available_cores() if workers is None else workers
    if workers < 0:
        raise ValueError(f"workers must be 0 (this process) or more, got {workers}")
    work: Work = functools.partial(_chunk_results, function, whole_chunks)
    if workers == 0:
        return _map_here(work, iter(items), chunk_size if whole_chunks else 1)
    return _map_with_workers(work, items, workers, chunk_size, start_method or "spawn", timeout_s)


def _map_here(work: Work, items: Iterator[Any], chunk_size: int) -> Iterator[Any]:
    first = 0
    while part := list(itertools.islice(items, chunk_size)):
        yield from work(first, part)
        first += len(part)


def _chunk_results(function: Callable[[Any], Any], whole_chunks: bool, first: int, items: list[Any]) -> list[Any]:
    if not whole_chunks:
        return [_guarded(function, first + k, item) for k, item in enumerate(items)]
    results = _guarded(function, first, items)
    if not isinstance(results, Failure):
        return list(results)
    if len(items) == 1:
        return [results]
    return [one for k, item in enumerate(items) for one in _chunk_results(function, True, first + k, [item])]


def _guarded(function: Callable[[Any], Any], index: int, item: Any) -> Any:
    try:
        return function(item)
    except Exception as err:
        return _failure_of(err, index)


def _failure_of(err: Exception, index: int) -> Failure:
    frames = traceback.extract_tb(err.__traceback__)
    where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return Failure(index, f"{type(err).__name__}: {err}", where)


def _map_with_workers(
    work: Work,
    items: Iterable[Any],
    workers: int,
    chunk_size: int,
    method: str,
    timeout_s: float | None,
) -> Iterator[Any]:
    tasks: queue.Queue[_Chunk | None] = queue.Queue()
    team = _Team(work, method, timeout_s)
    threads = [threading.Thread(target=team.serve, args=(tasks,), daemon=True) for _ in range(workers)]
    under_way: deque[_Chunk] = deque()
    source = iter(items)
    first = 0
    try:
        team.check_function()
        for thread in threads:
            thread.start()
        while True:
            while len(under_way) < CHUNKS_PER_WORKER * workers and (part := list(itertools.islice(source, chunk_size))):
                under_way.append(_Chunk(first, part))
                tasks.put(under_way[-1])
                first += len(part)
            if not under_way:
                return
            yield from under_way.popleft().wait()
    finally:
        team.stop()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            if thread.is_alive():
                thread.join(10)


def run_in_new_process(function: Callable[[Item], Result], item: Item) -> Result:
    """`function(item)` in a process of its own, which may start processes itself, as those of map_processes may not.

    What it raises is raised here; concurrent.futures.process.BrokenProcessPool where it is killed.
    """
    context = multiprocessing.get_context("spawn")
    with _one_thread_environment(), ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(function, item).result()


class _Chunk:
    """Items that travel to a worker together, and the place where their results are waited for."""

    def __init__(self, first: int, items: list[Any]) -> None:
        self.first, self.items = first, items
        self._done: queue.SimpleQueue[list[Any] | BaseException] = queue.SimpleQueue()

    def finish(self, results: list[Any] | BaseException) -> None:
        self._done.put(results)

    def wait(self) -> list[Any]:
        results = self._done.get()
        if isinstance(results, BaseException):
            raise results
        return results


class _Team:
    """The worker processes, each served by one thread of this process that hands it chunk after chunk."""

    def __init__(self, work: Work, method: str, timeout_s: float | None) -> None:
        self.work, self.timeout_s = work, timeout_s
        self.context = multiprocessing.get_context(method)
        self.lock = threading.Lock()  # one start at a time: a forked worker must not inherit another's pipe half open
        self.stopped = False
        self.deaths = 0
        self.running: set[_Worker] = set()

    def check_function(self) -> None:
        try:
            pickle.dumps(self.work)
        except Exception as err:
            raise WorkerError(f"{self.work.args[0]!r} cannot be sent to a worker process: {err}") from err

    def serve(self, tasks: queue.Queue[_Chunk | None]) -> None:
        worker: _Worker | None = None
        while (chunk := tasks.get()) is not None and not self.stopped:
            try:
                results, worker = self._work(worker, chunk.first, chunk.items)
                chunk.finish(results)
            except BaseException as err:  # raised again in the caller's thread
                worker = None
                chunk.finish(err)
        if worker is not None:
            self._end(worker)

    def _work(self, worker: _Worker | None, first: int, items: list[Any]) -> tuple[list[Any], _Worker | None]:
        """Results of the items. A chunk on which the worker dies is tried again item by item: one is at fault."""
        worker = worker or self._start()
        answer = worker.ask(first, items, None if self.timeout_s is None else self.timeout_s * len(items))
        if isinstance(answer, list):
            self.deaths = 0
            return answer, worker
        self._end(worker)
        if self.stopped:
            return [Failure(first + k, "stopped") for k in range(len(items))], None
        self.deaths += 1
        if self.deaths > MAX_DEATHS_IN_A_ROW:
            raise WorkerError(f"{self.deaths} workers died in a row, the last at item {first}: {answer}")
        if len(items) == 1:
            return [Failure(first, answer)], None
        results: list[Any] = []
        alone: _Worker | None = None
        for k, item in enumerate(items):
            one, alone = self._work(alone, first + k, [item])
            results += one
        return results, alone

    def _start(self) -> _Worker:
        with self.lock:
            if self.stopped:
                raise WorkerError("stopped")
            worker = _Worker(self.context, self.work)
            self.running.add(worker)
        worker.wait_until_ready()
        return worker

    def _end(self, worker: _Worker) -> None:
        worker.end()
        with self.lock:
            self.running.discard(worker)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            running = list(self.running)
        for worker in running:
            worker.kill()


class _Worker:
    def __init__(self, context: Any, work: Work) -> None:
        self.pipe, child_pipe = context.Pipe()
        inherited = self.pipe if context.get_start_method() == "fork" else None
        self.process = context.Process(target=_worker_main, args=(child_pipe, inherited, work), daemon=True)
        with _one_thread_environment():
            self.process.start()
        child_pipe.close()  # so that the worker's death closes the pipe

    def wait_until_ready(self) -> None:
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(
                f"a worker process could not start ({self._death()}); its message stands above. With start method "
                '"spawn" a script must keep its work under `if __name__ == "__main__":`'
            ) from None

    def ask(self, first: int, items: list[Any], timeout_s: float | None) -> list[Any] | str:
        """The results, or in words how the worker died."""
        try:
            self.pipe.send_bytes(pickle.dumps((first, items), pickle.HIGHEST_PROTOCOL))
            if not self.pipe.poll(timeout_s):
                self.kill()
                return f"timeout: no result within {timeout_s:g} s"
            answer: list[Any] = pickle.loads(self.pipe.recv_bytes())
            return answer
        except (EOFError, OSError):
            return self._death()

    def _death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        return (
            f"worker killed by signal {-code}"
            if code is not None and code < 0
            else f"worker ended with exit code {code}"
        )

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> None:
        self.pipe.close()  # an idle worker leaves its loop
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()


@contextlib.contextmanager
def _one_thread_environment() -> Iterator[None]:
    """A spawned process reads these when it loads numpy or torch. Two OpenMP teams on the same cores collapse."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _worker_main(pipe: Connection, inherited: Connection | None, work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's; it ends the workers by closing the pipes
    if inherited is not None:
        inherited.close()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if "torch" in sys.modules:  # loaded before the fork, or by the function's module
        sys.modules["torch"].set_num_threads(1)
    try:
        pipe.send("ready")
        while True:
            first, items = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(_pickle_results(first, work(first, items)))
    except (EOFError, OSError):
        return  # the caller is done, or gone


def _pickle_results(first: int, results: list[Any]) -> bytes:
    try:
        return pickle.dumps(results, pickle.HIGHEST_PROTOCOL)
    except Exception:
        for k, result in enumerate(results):
            try:
                pickle.dumps(result)
            except Exception as err:
                results[k] = replace(_failure_of(err, first + k), where=f"the result, a {type(result).__name__}")
        return pickle.dumps(results, pickle.HIGHEST_PROTOCOL)
