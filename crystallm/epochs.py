"""Which items make which batch, epoch after epoch, in an order that (seed, epoch) fixes: for loaders of any kind."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np


class EpochLoader(ABC):
    """Batches of `indices` for one of `world` processes. `state` is where the run stands: (epoch, batch).

    A step takes the next `n * world` batches of the order that all processes share; each process makes its own n. What
    comes next is known before it is made (`plan`, `make`), so others may make it ahead (train/ahead.py).
    """

    def __init__(self, indices: np.ndarray, pool: int, seed: int = 0, rank: int = 0, world: int = 1):
        """`pool`: items that are sorted by size together; more is less padding, and less mixed batches."""
        self.indices, self.pool, self.seed, self.rank, self.world = indices, pool, seed, rank, world
        self.state = {"epoch": 0, "batch": 0}

    # -- what each kind of loader says

    @abstractmethod
    def cut(self, indices: np.ndarray) -> list[np.ndarray]:
        """Batches of items of like size."""

    @abstractmethod
    def make(self, chosen: Any) -> Any:
        """The batch of what `choice` gave."""

    @abstractmethod
    def choice(self, indices: np.ndarray, number: int) -> Any:
        """All that `make` needs for batch `number` of this epoch."""

    def draw(self, rng: np.random.Generator) -> None:  # noqa: B027  not all have something to draw
        """What else changes from epoch to epoch, drawn before the order."""

    # -- what they have in common

    @property
    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]
        rng = np.random.default_rng([self.seed, self.epoch])
        self.draw(rng)
        shuffled = rng.permutation(self.indices)
        pools = range(0, len(shuffled), self.pool)
        batches = [batch for start in pools for batch in self.cut(shuffled[start : start + self.pool])]
        self._order = [batches[i] for i in rng.permutation(len(batches))]

    @property
    def n_batches(self) -> int:
        """Batches of the current epoch."""
        return len(self._order)

    def take(self, n: int) -> Iterator[Any]:
        """This process's n batches of the next n * world; goes on into the next epoch."""
        return map(self.make, itertools.islice(self.plan(), n))

    def plan(self) -> Iterator[Any]:
        """This process's batches from `state` on, as what `make` makes them of, without end."""
        while True:
            mine: list[Any] = []
            for i in range(self.world):
                if i == self.rank:
                    mine.append(self.choice(self._order[self.batch], self.batch))
                self.batch += 1
                if self.batch == len(self._order):
                    self.state = {"epoch": self.epoch + 1, "batch": 0}
            yield from mine

    def share(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Of batches that are gone through once: this process's."""
        return batches[self.rank :: self.world]
