"""Why records were rejected, in the words of all commands.

3 no_cell: no value for _cell_length_a; wanted three lengths and three angles (mp-1)
"""

from __future__ import annotations

from collections import Counter


class Rejections:
    """How many records what rejected, and the first of each."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.examples: dict[str, str] = {}

    def add(self, record_id: str, rejected_by: str, reason: str) -> None:
        self.counts[rejected_by] += 1
        if rejected_by not in self.examples:
            self.examples[rejected_by] = f"{without_name(rejected_by, reason)} ({record_id})"

    def lines(self) -> list[str]:
        """The most frequent first."""
        return [f"  {count:,} {name}: {self.examples[name]}" for name, count in self.counts.most_common()]


def rejection(rejected_by: str, reason: str) -> str:
    return f"{rejected_by}: {without_name(rejected_by, reason)}"


def without_name(rejected_by: str, reason: str) -> str:
    """On one line. Reasons in files of older versions begin with the name of what rejected."""
    return " ".join(reason.removeprefix(f"{rejected_by}: ").split())
