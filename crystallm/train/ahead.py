"""Batches made ahead of their use by other processes, so that a GPU never waits for Python."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

AHEAD = 4  # batches that each process is ahead


class Planned(Protocol):
    """What can say first which batch comes, and make it later, in another process: epochs.EpochLoader."""

    state: dict[str, int]

    def take(self, n: int) -> Iterator[Any]: ...
    def plan(self) -> Iterator[Any]: ...
    def make(self, chosen: Any) -> Any: ...


class BatchesAhead:
    """The batches of a planned loader, in its order. `state` is where the batches taken so far end, not those made."""

    def __init__(self, loader: Planned, workers: int):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.loader, self.workers = loader, workers
        self._state = dict(loader.state)
        self._states: deque[dict[str, int]] = deque()  # after each batch that is under way
        self._made: Iterator[Any] | None = None

    @property
    def state(self) -> dict[str, int]:
        return self._state

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        self.loader.state = self._state = dict(state)
        self._states.clear()
        self._made = None

    def take(self, n: int) -> Iterator[Any]:
        for _ in range(n):
            if self._made is None:
                self._made = iter(
                    DataLoader(
                        _Batches(self.loader),
                        batch_size=None,
                        sampler=self._sampled(),
                        num_workers=self.workers,
                        worker_init_fn=_leave_ctrl_c,  # to the trainer, which ends the step at hand
                        collate_fn=_as_it_is,
                        prefetch_factor=AHEAD,
                        generator=torch.Generator(),  # else it would draw from the one that dropout draws from
                    )
                )
            batch = next(self._made)
            self._state = self._states.popleft()
            yield batch

    def _sampled(self) -> Iterator[Any]:
        for chosen in self.loader.plan():
            self._states.append(dict(self.loader.state))
            yield chosen


def _leave_ctrl_c(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def made_ahead(loader: Planned, device: torch.device, workers: int | None = None) -> Planned | BatchesAhead:
    """The loader itself, or its batches made ahead; `workers` None: by two processes beside a GPU, else by none."""
    workers = (2 if device.type == "cuda" else 0) if workers is None else workers
    return BatchesAhead(loader, workers) if workers else loader


class _Batches(Dataset[Any]):
    def __init__(self, loader: Planned):
        self.loader = loader

    def __getitem__(self, chosen: Any) -> Any:
        return self.loader.make(chosen)


def _as_it_is(batch: Any) -> Any:
    return batch
