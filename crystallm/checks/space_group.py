"""The space group that a CIF states against the one found in its atoms."""

from __future__ import annotations

import contextlib
import re

import numpy as np

from crystallm.checks.composition import header_of
from crystallm.checks.geometric import crystal_of
from crystallm.cif import CIFHeader
from crystallm.cif_symmetry import Operations, settings_of_symbol
from crystallm.cif_write import full_symbol
from crystallm.records import CIFRecord
from crystallm.space_groups import SpaceGroup, SpaceGroupError, space_group_number, space_group_symbols
from crystallm.symmetry import SYMPREC_ANG, SymmetryError, find_space_group

_SETTING = re.compile(r"\s*\(.*?\)|[\s:]*(?:[HRSZhr]|[oO](?:rigin)?\s*[12]|(?<=:)[12])$")


def check_space_group(record: CIFRecord) -> str | None:
    """The number of the group found (spglib, symprec 0.1 Å) is the number stated; settings and spellings do not matter.

    A CIF that lists every atom under "P 1" makes no claim on symmetry, so it passes: half of all files are written so.
    With Wyckoff letters, as this project writes, P1 is a claim like any other.
    """
    header = header_of(record)
    try:
        stated = stated_number(header)
    except SpaceGroupError as err:
        return str(err)
    if stated is None or (stated == 1 and header.site_letters is None):
        return None
    found = _found(record)
    if isinstance(found, str):
        return found
    if found.number != stated:
        return f"{space_group_symbols()[stated - 1]} ({stated}) is stated, {found.symbol} ({found.number}) is found"
    return None


def check_space_group_symbol(record: CIFRecord) -> str | None:
    """CrystaLLM: the symbol stated, short or full, is the one that spglib finds at symprec 0.1 Å.

    A symbol of another setting ("P2_1/n") is not, as there.
    """
    stated = header_of(record).space_group_symbol
    if stated is None:
        return "the CIF states no space-group symbol"
    found = _found(record)
    if isinstance(found, str):
        return found
    if _spelling(stated) in (_spelling(found.symbol), _spelling(full_symbol(found))):
        return None
    return f"{stated!r} is stated, {found.symbol!r} is found"


def _spelling(symbol: str) -> str:
    return symbol.replace("_", "").replace(" ", "")


def stated_number(header: CIFHeader) -> int | None:
    """By symbol or number. SpaceGroupError where one of them names no group, or where they name two."""
    numbers = {}
    if header.space_group_symbol is not None:
        numbers[header.space_group_symbol] = _number_of_symbol(header.space_group_symbol)
    if header.space_group_number is not None:
        numbers[f"number {header.space_group_number}"] = space_group_number(header.space_group_number)
    if len(set(numbers.values())) > 1:
        raise SpaceGroupError(f"{' and '.join(numbers)} are stated, which are different space groups")
    return next(iter(numbers.values()), None)


def _number_of_symbol(symbol: str) -> int:
    """Also of what databases append, "R -3 c H", "F d -3 m S", and of larger cells, "B 21/c". SpaceGroupError."""
    plain = _SETTING.sub("", symbol)
    for attempt in (symbol, plain):
        with contextlib.suppress(SpaceGroupError):
            return space_group_number(attempt)
    if settings := settings_of_symbol(symbol):
        return _type_of(settings[0])
    return space_group_number(symbol)  # for its message


def _type_of(operations: Operations) -> int:
    """The number of the group that these are, in whatever cell. SpaceGroupError where spglib finds none."""
    import spglib

    rotations = np.rint(operations.rotations).astype(np.int32)
    found = spglib.get_spacegroup_type_from_symmetry(rotations, operations.translations)
    if found is None:
        raise SpaceGroupError(f"{operations.name} is no space group in its cell")
    return int(found.number)


def _found(record: CIFRecord) -> SpaceGroup | str:
    try:
        return find_space_group(crystal_of(record), SYMPREC_ANG)
    except SymmetryError as err:
        return str(err)
