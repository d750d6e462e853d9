"""Oxidation states from the composition alone: one state an element, charges that balance, and only one such answer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping

from tokenizer.elements import ELEMENT_RANK

# The usual states in solids. Elements without any (Po, At, noble gases, beyond Cm) leave a formula without an answer.
_STATES = """
H -1 1|Li 1|Be 2|B 3|C -4 4|N -3 5|O -2|F -1|Na 1|Mg 2|Al 3|Si -4 4|P -3 3 5|S -2 4 6|Cl -1 5 7|K 1|Ca 2|Sc 3|Ti 4|V 5
Cr 3 6|Mn 2 4 7|Fe 2 3|Co 2 3|Ni 2|Cu 1 2|Zn 2|Ga 3|Ge -4 4|As -3 3 5|Se -2 4 6|Br -1 5 7|Rb 1|Sr 2|Y 3|Zr 4|Nb 5
Mo 4 6|Tc 4 7|Ru 3 4|Rh 3|Pd 2 4|Ag 1|Cd 2|In 3|Sn -4 2 4|Sb -3 3 5|Te -2 4 6|I -1 5 7|Cs 1|Ba 2|La 3|Ce 3 4|Pr 3
Nd 3|Pm 3|Sm 3|Eu 2 3|Gd 3|Tb 3|Dy 3|Ho 3|Er 3|Tm 3|Yb 2 3|Lu 3|Hf 4|Ta 5|W 4 6|Re 4 7|Os 4|Ir 3 4|Pt 2 4|Au 1 3
Hg 1 2|Tl 1 3|Pb 2 4|Bi 3|Ra 2|Ac 3|Th 4|Pa 5|U 4 6|Np 5|Pu 4|Am 3|Cm 3
"""
# From ... to, of an average over the atoms of one element whose states differ, in oxides and halides. (In sulphides and
# the like the anions may be bonded to each other: in pyrite, FeS2, iron is not +4.)
_MIXED = """
Ti 2 4|V 2 5|Cr 2 6|Mn 2 7|Fe 2 4|Co 2 4|Ni 2 4|Cu 1 3|Zr 2 4|Nb 2 5|Mo 2 6|Ru 3 6|Rh 3 4|Pd 2 4|Ta 3 5|W 4 6|Re 4 7
Os 4 8|Ir 3 5|Pt 2 4|Ce 3 4|Pr 3 4|Sm 2 3|Eu 2 3|Tb 3 4|Yb 2 3|U 3 6
"""
_MIXED_ANIONS = {"O", "F", "Cl", "Br", "I"}


def _read(table: str) -> dict[str, tuple[int, ...]]:
    entries = (entry.split() for entry in table.replace("\n", "|").split("|") if entry)
    return {symbol: tuple(map(int, states)) for symbol, *states in entries}


@functools.cache
def _states() -> dict[str, tuple[int, ...]]:
    return _read(_STATES)


@functools.cache
def _mixed() -> dict[str, tuple[int, ...]]:
    return _read(_MIXED)


def guess_oxidation_states(composition: Mapping[str, int]) -> dict[str, float]:
    """{"Fe": 3, "O": 4} -> {"Fe": 2.667, "O": -2.0}; {} where no state, or more than one, is likely.

    Every element that is more electronegative than a negative one is negative, too. First the usual whole numbers are
    tried; if none balances, the average state of the only element whose states vary, in an oxide or halide. Elements,
    alloys and peroxides get no answer.
    """
    return dict(_guess(tuple(sorted(composition.items(), key=lambda item: ELEMENT_RANK[item[0]]))))


@functools.lru_cache(maxsize=65536)
def _guess(composition: tuple[tuple[str, int], ...]) -> tuple[tuple[str, float], ...]:
    symbols, counts = zip(*composition, strict=True)
    if any(symbol not in _states() for symbol in symbols):
        return ()
    whole = [states for states in _choices(symbols) if not sum(n * q for n, q in zip(counts, states, strict=True))]
    if whole:
        return tuple((symbol, float(q)) for symbol, q in zip(symbols, whole[0], strict=True)) if len(whole) == 1 else ()
    varying = [k for k, symbol in enumerate(symbols) if symbol in _mixed()]
    if len(varying) != 1:
        return ()
    (k,) = varying
    low, high = _mixed()[symbols[k]]
    found = set()
    for states in _choices(symbols):
        others = [(s, q) for j, (s, q) in enumerate(zip(symbols, states, strict=True)) if j != k]
        if any((q < 0 and s not in _MIXED_ANIONS) or len(_signed(s, q > 0)) > 1 for s, q in others) or states[k] < 0:
            continue
        rest = sum(n * q for j, (n, q) in enumerate(zip(counts, states, strict=True)) if j != k)
        if low <= -rest / counts[k] <= high:
            found.add((*states[:k], -rest / counts[k], *states[k + 1 :]))
    return tuple(zip(symbols, map(float, found.pop()), strict=True)) if len(found) == 1 else ()


def _signed(symbol: str, positive: bool) -> list[int]:
    return [q for q in _states()[symbol] if (q > 0) == positive]


def _choices(symbols: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """Each way to give the first elements positive states and the rest negative ones; the symbols are in formula
    order.
    """
    for n_positive in range(1, len(symbols)):
        yield from itertools.product(*(_signed(symbol, k < n_positive) for k, symbol in enumerate(symbols)))
