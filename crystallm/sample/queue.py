"""Whose sample is drawn next, and in which order records are passed on: prompt by prompt, none kept afterwards."""

from __future__ import annotations

import functools
import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from crystallm.sample.constraints import Constraint
from crystallm.sample.engine import Job, Sample
from crystallm.sample.prompts import Prompt

if TYPE_CHECKING:
    from crystallm.checks.match_index import CrystalIndex
    from crystallm.records import CIFRecord
    from crystallm.sample.generate import GenerateConfig


@dataclass(eq=False)
class Series:
    """The samples of one prompt: how many to draw, and those that are checked and wait for their turn."""

    number: int  # of the prompt
    name: str  # in the ids of its records
    prompt: Prompt
    ids: list[int]
    new_constraint: Callable[[], Constraint]
    stream: int  # of random numbers
    first: int  # index in it
    config: GenerateConfig
    n_condition: int = 0  # tokens of property lines
    n_sent: int = 0  # to the engine
    n_drawn: int = 0
    n_valid: int = 0
    records: deque[CIFRecord] = field(default_factory=deque)

    @property
    def is_complete(self) -> bool:
        return self.n_drawn == self.config.draws_per_prompt or (
            self.config.until_valid and self.n_valid == self.config.num
        )

    @property
    def wants_more(self) -> bool:
        """With until_valid, as many are under way as the share of valid ones so far makes likely to do."""
        if self.n_sent == self.config.draws_per_prompt or not self.config.until_valid:
            return self.n_sent < self.config.draws_per_prompt
        under_way, missing = self.n_sent - self.n_drawn, self.config.num - self.n_valid
        return under_way * (self.n_valid + 1) < missing * (self.n_drawn + 1)

    @functools.cached_property
    def distinct(self) -> CrystalIndex:
        from crystallm.checks.match_index import CrystalIndex

        return CrystalIndex()

    def add(self, record: CIFRecord) -> None:
        """Records beyond the last that is wanted are dropped: how many were under way must not show."""
        if self.is_complete:
            return
        if self.config.unique and record.rejected_by is None and record.text:
            from crystallm.checks.known import strip_conditions

            text = strip_conditions(record.text)
            same = self.distinct.find(text)
            if same is None:
                self.distinct.add(text, record.id)
            else:
                record = replace(record, rejected_by="duplicate", reason=f"the same crystal as {same}")
        self.records.append(record)
        self.n_drawn += 1
        self.n_valid += record.rejected_by is None

    def pop_records(self) -> Iterator[CIFRecord]:
        while self.records:
            yield self.records.popleft()


class Queue:
    """What to draw next: a sample of the first prompt that wants one more, so that the engine is never half empty."""

    def __init__(self, series: Iterable[Series], restarts: int):
        self.restarts = restarts
        self._asking = {one.number: one for one in series}  # those that may want more,
        self._numbers = list(self._asking)  # as a heap
        self._under_way: OrderedDict[int, tuple[Series, int]] = OrderedDict()  # by index

    def jobs(self) -> Iterator[Job]:
        """Ends where no prompt wants more for now."""
        while self._numbers:
            one = self._asking[self._numbers[0]]
            if not one.wants_more:
                del self._asking[heapq.heappop(self._numbers)]
                continue
            k = one.n_sent
            index = one.stream << 32 | one.first + k
            if index in self._under_way:  # two prompts can have the same stream, once in 4e9 pairs
                return
            self._under_way[index] = one, k
            one.n_sent += 1
            yield Job(index, one.ids, one.new_constraint, self.restarts, one.n_condition)

    def in_order(self, samples: Iterable[Sample]) -> Iterator[tuple[Series, int, Sample]]:
        """Each job's prompt, number and sample in the order of the jobs: what ends early waits for what began before.

        That is as many as the engine ends while it draws its longest sequence, whatever the number of jobs.
        """
        ended: dict[int, Sample] = {}
        for sample in samples:
            ended[sample.index] = sample
            while self._under_way and (index := next(iter(self._under_way))) in ended:
                one, k = self._under_way.pop(index)
                yield one, k, ended.pop(index)
        assert not ended and not self._under_way

    def take(self, one: Series, record: CIFRecord) -> None:
        one.add(record)
        if one.wants_more and one.number not in self._asking:
            self._asking[one.number] = one
            heapq.heappush(self._numbers, one.number)
