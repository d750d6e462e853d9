"""How a text lays out what the canonical one states: the order of its blocks, and the decimals of its coordinates.

    layout = layout_of(tokenizer.vocabulary)
    layout.read(layout.write(text)) == text  # for every canonical text, unless fewer decimals round it

Models that are compared with ours may write such texts; what is kept of their samples is the canonical text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crystallm.asymmetric_unit import COORDINATE_DECIMALS, AsymmetricUnit, CanonicalError

if TYPE_CHECKING:
    from tokenizer.vocabulary import Vocabulary

_HEAD = r"((?:.*\n)*?_symmetry_space_group_name_H-M .*\n)"
_CELL = r"(_cell_length_a .*\n_cell_length_b .*\n_cell_length_c .*\n(?:_cell_angle_[a-z]+ .*\n){3})"
_LOOP = r"(loop_\n(?:.*\n)*)"
_CELL_FIRST, _CELL_LAST = re.compile(_HEAD + _CELL + _LOOP), re.compile(_HEAD + _LOOP + _CELL)
# The first thing of a text that another layout may write in another way.
_AFTER_GROUP = re.compile(r"\n_symmetry_space_group_name_H-M +\S+\s+\S")
_AFTER_LOOP_HEADER = re.compile(r"_atom_site_fract_z\s+\S")


@dataclass(frozen=True)
class Layout:
    """The default is that of canonical texts."""

    order: str = "canonical"  # one of tokenizer.vocabulary.ORDERS
    coordinate_decimals: int = COORDINATE_DECIMALS

    def write(self, text: str) -> str:
        """A canonical text, whose coordinates may have as many decimals as this layout's, in this layout."""
        if self.coordinate_decimals != COORDINATE_DECIMALS:
            decimals = self.coordinate_decimals
            text = AsymmetricUnit.from_text(text).on_grid(decimals).to_text(decimals)
        return _swapped(_CELL_FIRST, text, "canonical") if self.order == "cell_last" else text

    def read(self, text: str) -> str:
        """The canonical text. Raises CanonicalError for what is not in this layout as far as it differs."""
        if self.order == "cell_last":
            text = _swapped(_CELL_LAST, text, self.order)
        if self.coordinate_decimals != COORDINATE_DECIMALS:
            text = AsymmetricUnit.from_text(text).on_grid().to_text()
        return text

    def shares(self, prefix: str) -> bool:
        """Whether texts that begin so in the canonical layout do in this one."""
        if self.order != "canonical":
            return not _AFTER_GROUP.search(prefix)
        return self.coordinate_decimals == COORDINATE_DECIMALS or not _AFTER_LOOP_HEADER.search(prefix)


def layout_of(vocabulary: Vocabulary) -> Layout:
    """Of the texts that a vocabulary is for."""
    return Layout(vocabulary.order, vocabulary.decimals.get("coordinate", COORDINATE_DECIMALS))


def _swapped(pattern: re.Pattern[str], text: str, order: str) -> str:
    """The second and third block in each other's place."""
    match = pattern.fullmatch(text)
    if match is None:
        raise CanonicalError("syntax", f"head, cell and sites do not stand in the order {order!r}: {text[:60]!r}…")
    head, second, third = match.groups()
    return f"{head}{third}{second}"
