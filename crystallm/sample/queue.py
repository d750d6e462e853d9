"""Whose sample is drawn next, and in which order records are passed on: prompt by prompt, none kept afterwards."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from crystallm.sample.prompts import Prompt

if TYPE_CHECKING:
    from crystallm.checks.match_index import CrystalIndex
    from crystallm.records import CIFRecord
    from crystallm.sample.generate import GenerateConfig
    from crystallm.sample.known import Known


@dataclass(frozen=True, eq=False)
class Earlier:
    """Crystals that are not wanted once more."""

    distinct: CrystalIndex | None = None  # with `unique`: what was passed on of all prompts
    known: Known | None = None  # with `novel`

    def held_against(self, record: CIFRecord) -> CIFRecord:
        """Rejected where it is one of them, else one of them from now on."""
        from crystallm.checks.known import strip_conditions

        text = strip_conditions(record.text)
        if self.known is not None and (same := self.known.find(text)) is not None:
            reason = f"known as {same}, one {self.known.index.criterion}"
            return replace(record, rejected_by="known", reason=reason)
        if self.distinct is not None:
            if (same := self.distinct.find(text)) is not None:
                return replace(record, rejected_by="duplicate", reason=f"the same crystal as {same}")
            self.distinct.add(text, record.id)
        return record


@dataclass(eq=False)
class Series:
    """The samples of one prompt: how many to draw, and those that are checked and wait for their turn.

    Which of them are duplicates is decided in their turn, since it hangs on all that was passed on before: however many
    of later prompts were drawn early, the same ones are kept.
    """

    number: int  # of the prompt
    name: str  # in the ids of its records
    prompt: Prompt
    stream: int  # of random numbers
    first: int  # index in it
    config: GenerateConfig
    earlier: Earlier | None = None
    n_sent: int = 0  # to the engine
    n_drawn: int = 0
    n_valid: int = 0  # of those drawn, as far as is known
    n_passed: int = 0  # on, in their turn
    n_passed_valid: int = 0
    records: deque[CIFRecord] = field(default_factory=deque)

    @property
    def is_complete(self) -> bool:
        return self.n_passed == self.config.draws_per_prompt or (
            self.config.until_valid and self.n_passed_valid == self.config.num
        )

    @property
    def wants_more(self) -> bool:
        """With until_valid, as many are under way as the share of valid ones so far makes likely to do."""
        if self.n_sent == self.config.draws_per_prompt or not self.config.until_valid:
            return self.n_sent < self.config.draws_per_prompt
        under_way, missing = self.n_sent - self.n_drawn, self.config.num - self.n_valid
        return under_way * (self.n_valid + 1) < missing * (self.n_drawn + 1)

    def add(self, record: CIFRecord) -> None:
        if self.is_complete:
            return
        self.records.append(record)
        self.n_drawn += 1
        self.n_valid += record.rejected_by is None

    def pop_records(self) -> Iterator[CIFRecord]:
        """In the prompt's turn. Those beyond the last that is wanted stay: how many were under way must not show."""
        while self.records and not self.is_complete:
            record = self.records.popleft()
            if self.earlier is not None and record.rejected_by is None and record.text:
                record = self.earlier.held_against(record)
                self.n_valid -= record.rejected_by is not None
            self.n_passed += 1
            self.n_passed_valid += record.rejected_by is None
            yield record


@dataclass(frozen=True, slots=True)
class Ticket:
    """A sample to be drawn."""

    index: int  # with the seed, decides the random numbers
    number: int  # of the prompt
    prompt: Prompt
    record_id: str
    k: int  # of the prompt's samples


class Queue:
    """What to draw next, a sample of the first prompt that wants one more, so that nobody waits who could be drawing.

    Iterating ends where no prompt wants more for now, and goes on when records have been taken.
    """

    def __init__(self, series: Iterable[Series]):
        self._asking = {one.number: one for one in series}  # those that may want more,
        self._numbers = list(self._asking)  # as a heap
        self._under_way: OrderedDict[int, Series] = OrderedDict()  # by index

    def __iter__(self) -> Iterator[Ticket]:
        return self

    def __next__(self) -> Ticket:
        while self._numbers:
            one = self._asking[self._numbers[0]]
            if not one.wants_more:
                del self._asking[heapq.heappop(self._numbers)]
                continue
            k = one.n_sent
            index = one.stream << 32 | one.first + k
            if index in self._under_way:  # two prompts can have the same stream, once in 4e9 pairs
                break
            self._under_way[index] = one
            one.n_sent += 1
            return Ticket(index, one.number, one.prompt, f"gen-{one.name}{k:06d}", one.first + k)
        raise StopIteration

    def take(self, record: CIFRecord) -> None:
        """The record of the next ticket: they come back in order."""
        one = self._under_way.popitem(last=False)[1]
        one.add(record)
        self.ask(one)

    def ask(self, one: Series) -> None:
        """It may want more than it did."""
        if one.wants_more and one.number not in self._asking:
            self._asking[one.number] = one
            heapq.heappush(self._numbers, one.number)
