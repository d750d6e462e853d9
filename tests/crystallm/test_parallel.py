import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from crystallm.parallel import Failure, WorkerError, map_processes, run_in_new_process


def square(x: int) -> int:
    return x * x


def fail_on_three(x: int) -> int:
    if x == 3:
        raise ValueError("three is not allowed")
    return x


def die_on_seven(x: int) -> int:
    if x == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def always_die(_: int) -> None:
    os._exit(3)


def sleep_long_on_two(x: int) -> int:
    if x == 2:
        time.sleep(60)
    return x


def threads_in_worker(_: int) -> tuple[str | None, int]:
    import torch

    return os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()


def unpicklable_result(x: int) -> object:
    return threading.Lock() if x == 1 else x


def slow_first(x: int) -> int:
    time.sleep(0.3 if x == 0 else 0.0)
    return x


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_same_as_map_in_order(method):
    items = range(101)
    assert list(map_processes(square, items, 2, 7, start_method=method)) == list(map(square, items))


@pytest.mark.parametrize("workers", [0, 2])
def test_exception_is_the_items_failure(workers):
    results = list(map_processes(fail_on_three, range(6), workers, 2))
    assert results[:3] == [0, 1, 2] and results[4:] == [4, 5]
    assert isinstance(results[3], Failure)
    assert results[3].index == 3
    assert results[3].error == "ValueError: three is not allowed"
    assert results[3].where.startswith("test_parallel.py:") and results[3].where.endswith("in fail_on_three")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_killed_worker_costs_one_item(method):
    results = list(map_processes(die_on_seven, range(12), 2, 4, start_method=method))
    assert results[7] == Failure(7, "worker killed by signal 9")
    assert [r for r in results if not isinstance(r, Failure)] == [x for x in range(12) if x != 7]


def test_workers_that_always_die_end_the_run():
    with pytest.raises(WorkerError, match="workers died in a row"):
        list(map_processes(always_die, range(1000), 2, 1, start_method="fork"))


def test_timeout_costs_one_item():
    results = list(map_processes(sleep_long_on_two, range(5), 1, 3, start_method="fork", timeout_s=0.5))
    assert results == [0, 1, Failure(2, "timeout: no result within 0.5 s"), 3, 4]


def test_result_that_cannot_travel_is_a_failure():
    results = list(map_processes(unpicklable_result, range(3), 1, 3, start_method="fork"))
    assert results[0] == 0 and results[2] == 2
    assert isinstance(results[1], Failure) and "pickle" in results[1].error


def test_one_thread_a_worker():
    before = dict(os.environ)
    assert list(map_processes(threads_in_worker, [0], 1)) == [("1", 1)]
    assert dict(os.environ) == before


def test_items_are_read_only_as_far_as_the_window():
    read = []

    def items():
        for k in range(1000):
            read.append(k)
            yield k

    results = map_processes(square, items(), 2, 5, start_method="fork")
    assert next(results) == 0
    assert len(read) <= 3 * 2 * 5
    results.close()


def test_order_holds_when_the_first_is_slow():
    assert list(map_processes(slow_first, range(20), 3, 1, start_method="fork")) == list(range(20))


def test_error_of_the_source_reaches_the_caller():
    def items():
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(map_processes(square, items(), 1, 1, start_method="fork"))


def test_function_that_cannot_travel_is_an_error():
    with pytest.raises(WorkerError, match="cannot be sent"):
        list(map_processes(lambda x: x, [1], 1))


@pytest.mark.parametrize(
    "arguments, message", [((-1, 1), "workers must be 0"), ((1, 0), "chunk_size must be at least 1")]
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        map_processes(square, [1], *arguments)


def test_workers_leave_when_the_caller_stops_early():
    before = set(psutil.Process().children())
    results = map_processes(square, range(10**9), 2, 1, start_method="fork")
    next(results)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    results.close()
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_workers_leave_when_the_caller_is_killed(tmp_path, root):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import os, time
        from crystallm.parallel import map_processes
        def work(x):
            time.sleep(0.05)
            return os.getpid()
        if __name__ == "__main__":
            for pid in map_processes(work, range(10**6), 2, 1, start_method="fork"):
                print(pid, flush=True)
        """)
    )
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env) as process:
        workers = {int(process.stdout.readline()) for _ in range(8)}
        process.kill()
    for _ in range(50):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"workers {workers} outlive their caller")


def square_all(xs: list[int]) -> list[int]:
    if 3 in xs:
        raise ValueError(f"three among {len(xs)}")
    return [x * x for x in xs]


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_chunks_and_the_item_at_fault(workers: int):
    results = list(map_processes(square_all, range(10), workers, 4, whole_chunks=True))
    assert results[:3] + results[4:] == [x * x for x in range(10) if x != 3]
    assert results[3].index == 3 and results[3].error == "ValueError: three among 1"


class Pausing:
    """Ends after every third number, and goes on when asked again."""

    def __init__(self) -> None:
        self.asked = self.n = 0

    def __iter__(self) -> "Pausing":
        return self

    def __next__(self) -> int:
        self.asked += 1
        if self.asked % 4 == 0 or self.n == 10:
            raise StopIteration
        self.n += 1
        return self.n - 1


def test_items_may_end_and_go_on_while_work_is_under_way():
    assert list(map_processes(square, Pausing(), 2, 2)) == [x * x for x in range(10)]


def squares_by_others(n: int) -> list[int]:
    if n < 0:
        raise ValueError(f"{n} is negative")
    return list(map_processes(square, range(n), 2, 2))  # type: ignore[arg-type]


def test_a_new_process_may_start_processes_and_its_errors_come_back():
    assert run_in_new_process(squares_by_others, 5) == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match="-1 is negative"):
        run_in_new_process(squares_by_others, -1)
    with pytest.raises(BrokenProcessPool):
        run_in_new_process(always_die, 0)
