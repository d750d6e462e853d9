"""What is asked of a structure besides its prompt: property lines, numbers of the cell, a prototype.

    steering = read_steering(vocabulary, {"density": 2.1}, {"a": 4.0}, "fcc", trained=("density_g_per_cm3",))

Numbers are rounded to the vocabulary's grid, since nothing else can be written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.sample.cells import CELL_NAMES, NO_CELL, Cell, has_volume
from crystallm.sample.formulas import PromptError
from crystallm.sample.prototypes import Prototype, find_prototype
from tokenizer.vocabulary import PROPERTY_LEAST

if TYPE_CHECKING:
    from tokenizer.vocabulary import Vocabulary

_UNIT = re.compile(r"_(?:ev|ang\d?|g|gpa|k)(?:_per_\w+)?$")  # the end of a property's name
_UNITS = {"_ev_per_atom": "eV/atom", "_ev": "eV", "_gpa": "GPa", "_k": "K", "_ang3": "Å³", "_g_per_cm3": "g/cm³"}
_LINES = re.compile(r"(?:# .*\n)*")  # property lines, at the beginning of a prompt


@dataclass(frozen=True)
class Steering:
    lines: tuple[tuple[str, str], ...] = ()  # property lines in their order: name with its unit, value as written
    cell: Cell = NO_CELL  # of the conventional cell, Å and degrees; None where it is left to the model
    prototype: Prototype | None = None
    rounded: tuple[str, ...] = ()  # "density_g_per_cm3 2.1284 to +2.13"

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked, as plain data: of a record's provenance."""
        asked: dict[str, Any] = {}
        if self.lines:
            asked["properties"] = {name: float(value) for name, value in self.lines}
        if self.cell != NO_CELL:
            asked["cell"] = {
                name: value for name, value in zip(CELL_NAMES, self.cell, strict=True) if value is not None
            }
        if self.prototype is not None:
            asked["prototype"] = self.prototype.name
        return asked

    def summary(self) -> str:
        """One line for the user; "" where nothing is asked."""
        asked = self.settings
        parts = [f"{name} {value:.2f}" for name, value in asked.get("properties", {}).items()]
        if "cell" in asked:
            cell = asked["cell"].items()
            parts.append("cell " + ", ".join(f"{k} {v:.2f} Å" if k in "abc" else f"{k} {v:.1f}°" for k, v in cell))
        if self.prototype is not None:
            parts.append(f"prototype {self.prototype.describe()}")
        note = f" (rounded: {', '.join(self.rounded)})" if self.rounded else ""
        return f"asked: {'; '.join(parts)}{note}" if parts else ""


NOTHING = Steering()


def read_steering(
    vocabulary: Vocabulary,
    properties: Mapping[str, float] | None = None,
    cell: Mapping[str, float] | None = None,
    prototype: str | None = None,
    trained: Sequence[str] = (),
) -> Steering:
    """`properties`: by name with its unit or without, `trained`: those the model knows; `cell`: a, b, c in Å, alpha,
    beta, gamma in degrees, any of them, of the conventional cell. Raises PromptError for what cannot be asked.
    """
    if (cell or prototype is not None) and vocabulary.kind != "lexemes":
        raise PromptError(
            f"a cell and a prototype are constraints on canonical text; models of the vocabulary {vocabulary.name!r} "
            "do not write it under constraints"
        )
    lines, rounded = _read_lines(vocabulary, properties or {}, trained)
    numbers, more = _read_cell(vocabulary, cell or {})
    asked = None if prototype is None else find_prototype(prototype)
    return Steering(lines, numbers, asked, (*rounded, *more))


def read_assignments(texts: Iterable[str]) -> dict[str, float]:
    """["a=4.0", "beta=100"] -> numbers by name, for options of a command. Raises PromptError."""
    found: dict[str, float] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not name or not sign:
            raise PromptError(f"got {text!r}, wanted NAME=NUMBER")
        if name in found:
            raise PromptError(f"{name} is asked for twice: {found[name]:g} and {value}")
        try:
            found[name] = float(value)
        except ValueError:
            raise PromptError(f"{name} is {value!r}, wanted a number") from None
    return found


# ---------------------------------------------------------------- property lines


def property_label(name: str) -> tuple[str, str]:
    """What a table calls a property, and its unit: "density", "g/cm³"."""
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return name.removesuffix(ending).replace("_", " "), unit
    return name.replace("_", " "), ""


def property_names(vocabulary: Vocabulary) -> list[str]:
    """Of the property lines that a vocabulary has, in their order; none where it has no tokens for their values."""
    if "property_value" not in vocabulary.classes:
        return []
    keywords = vocabulary.classes["property_keyword"]
    return [vocabulary.tokens[token].decode().strip("# ") for token in keywords.tolist()]


def _read_lines(
    vocabulary: Vocabulary, asked: Mapping[str, float], trained: Sequence[str]
) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    names = property_names(vocabulary)
    full = {name: name for name in names} | {_UNIT.sub("", name): name for name in names}
    lines: dict[str, str] = {}
    rounded = []
    for given, value in asked.items():
        if given not in full:
            there = ", ".join(names) if names else f"none in the vocabulary {vocabulary.name!r}"
            raise PromptError(f"no property {given!r}; there are {there}")
        name = full[given]
        if name in lines:
            raise PromptError(f"{name} is asked for twice: {float(lines[name]):g} and {value:g}")
        _check_trained(name, trained)
        lines[name] = _on_grid(vocabulary, "property_value", name, value, PROPERTY_LEAST.get(name, -math.inf))
        rounded += _rounding(name, value, lines[name])
    return tuple((name, lines[name]) for name in names if name in lines), rounded


def _check_trained(name: str, trained: Sequence[str]) -> None:
    if name not in trained:
        raise PromptError(
            f"this model was not trained with {name}, so it cannot be asked for; it was trained with "
            f"{', '.join(trained) or 'no property lines (data.properties)'}"
        )


def property_lines(text: str) -> str:
    """The lines at the beginning of a prompt's text; "" where there are none."""
    match = _LINES.match(text)
    assert match is not None
    return match.group()


def add_lines(text: str, steering: Steering, vocabulary: Vocabulary, name: str, trained: Sequence[str]) -> str:
    """A prompt's text with the property lines, in the vocabulary's order, among those that it has already.

    Raises PromptError, which begins with `name`, for a line that stands there already, or that the model does not know.
    """
    there = property_lines(text)
    stated = [line.split(" ")[1] for line in there.splitlines()]
    known = property_names(vocabulary)
    for one in stated:
        if one in known:  # what is no property at all is told with its place when the prompt is read
            _check_trained(one, trained)
    for one, value in steering.lines:
        if one in stated:
            raise PromptError(f"{name}: the prompt has a line of {one} already, and {float(value):g} is asked for")
    if not steering.lines:
        return text
    lines = [*there.splitlines(), *(f"# {one} {value}" for one, value in steering.lines)]
    order = {one: place for place, one in enumerate(known)}
    lines.sort(key=lambda line: order.get(line.split(" ")[1], len(order)))
    return "".join(f"{line}\n" for line in lines) + text[len(there) :]


# ---------------------------------------------------------------- the cell


def _read_cell(vocabulary: Vocabulary, asked: Mapping[str, float]) -> tuple[Cell, list[str]]:
    numbers: dict[str, float | None] = dict.fromkeys(CELL_NAMES)
    rounded = []
    for name, value in asked.items():
        if name not in CELL_NAMES:
            raise PromptError(f"a cell has no {name!r}; it has {', '.join(CELL_NAMES)}")
        kind = "length" if name in "abc" else "angle"
        written = _on_grid(vocabulary, kind, name, value)
        numbers[name] = float(written)
        rounded += _rounding(name, value, written)
    a, b, c, alpha, beta, gamma = numbers.values()
    if alpha is not None and beta is not None and gamma is not None and not has_volume(alpha, beta, gamma):
        raise PromptError(f"no cell has the angles {alpha:.1f}, {beta:.1f} and {gamma:.1f}°: it would be flat")
    return (a, b, c, alpha, beta, gamma), rounded


# ---------------------------------------------------------------- grids


def _on_grid(vocabulary: Vocabulary, kind: str, name: str, value: float, least: float = -math.inf) -> str:
    """The number of a class, from `least` on, that is nearest, as it is written there.

    PromptError beyond half a step of the ends.
    """
    texts = [vocabulary.tokens[token].decode().strip() for token in vocabulary.classes[kind].tolist()]
    texts = [text for text in texts if float(text) >= least]
    grid = np.array(texts, dtype=np.float64)
    half = 0.5000001 * (grid[-1] - grid[0]) / (len(grid) - 1)
    if not math.isfinite(value) or not grid[0] - half <= value <= grid[-1] + half:
        raise PromptError(f"{name} is {value:g}, wanted a number from {texts[0]} to {texts[-1]}")
    return texts[int(np.abs(grid - value).argmin())]


def _rounding(name: str, value: float, written: str) -> list[str]:
    return [] if math.isclose(value, float(written), abs_tol=1e-9) else [f"{name} {value:g} to {float(written):g}"]
