"""What a user asks for, as the beginning of a canonical CIF and a Request for the rest. Needs numpy and the tokenizer.

NaCl, "Na Cl", Ca(OH)2     a formula
Na4Cl4                     NaCl with four formula units in the conventional cell
Li-Fe-O                    a chemical system: all of these elements, counts left to the model
data_NaCl\\n_crystallm_...  the beginning of a canonical CIF
nothing                    everything is left to the model
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from crystallm.crystal import Crystal, formula_text, reduce_composition
from crystallm.sample.cells import CELL_NAMES, NO_CELL, complete_cell
from crystallm.sample.composition import Request, candidate_units, possible_groups, possible_units
from crystallm.sample.constraints import Constraint, DeadEnd, Free, Full, Syntax
from crystallm.sample.formulas import PromptError, parse_chemical_system, parse_formula
from crystallm.sample.occupation import centrings
from crystallm.sample.prototypes import Prototype, prototypes_for
from crystallm.sample.rules import Rules
from crystallm.sample.steering import NOTHING, Steering
from crystallm.space_groups import N_GROUPS, SpaceGroupError, space_group, space_group_number, space_group_symbols
from tokenizer import GrammarError
from tokenizer.vocabulary import LOOP_HEADER, PROPERTY_NAMES

Mode = Literal["none", "syntax", "full"]

_UNITS = "\n_crystallm_primitive_formula_units "
_GROUP = "\n_symmetry_space_group_name_H-M"
_MAX_COUNT = 999  # the largest integer with a token
_SHOWN = 8  # alternatives listed in an error
_FILE_ENDINGS = (".txt", ".cif", ".csv")
_PROPERTY_KEYWORDS = tuple(f"# {name} " for name in PROPERTY_NAMES)
_CIF_LINE = re.compile(r"^(?:loop_|_[a-z]+_)", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    source: str  # as it was given
    text: str  # the beginning of the canonical CIF
    request: Request  # what the text does not say
    steering: Steering = NOTHING  # what else was asked, of which text and request tell the sampler
    place: str = ""  # "prompts.txt, line 3" of one that stands in a file

    @property
    def name(self) -> str:
        """For errors: the place and the first line of what was given."""
        lines = self.source.strip().splitlines() or ["an empty prompt"]
        name = repr(lines[0]) if self.source.strip() else lines[0]
        return f"{self.place}: {name}" if self.place else name


def parse_prompt(
    source: str | None = None,
    space_group: int | str | None = None,
    formula_units: int | None = None,
) -> Prompt:
    """`formula_units` are those of the primitive cell. Raises PromptError, which says where and what was wanted."""
    source = source or ""
    text = source.replace("\r\n", "\n").strip()
    try:
        number = None if space_group is None else space_group_number(space_group)
    except SpaceGroupError as err:
        raise PromptError(str(err)) from None
    if formula_units is not None and not 1 <= formula_units <= _MAX_COUNT:
        raise PromptError(f"formula units are a whole number from 1 to {_MAX_COUNT}, got {formula_units}")
    request = Request(space_groups=None if number is None else (number,), formula_units=formula_units)
    conditions, _, last = text.rpartition("\n")  # property lines stand before data_
    if text.startswith(("data_", "# ")):
        if not last.startswith("data_"):
            return Prompt(source, text, request)
        conditions, text = conditions + "\n" * bool(conditions), last.removeprefix("data_")
    else:
        conditions = ""
    if not text:
        return Prompt(source, f"{conditions}data_", replace(request, is_open=True))
    if re.search(r"[A-Za-z]\s*-", text):
        elements = parse_chemical_system(text)
        return Prompt(source, f"{conditions}data_", replace(request, elements=elements, is_open=True))
    return _formula_prompt(source, conditions, parse_formula(text), request)


def steered_prompt(source: str, space_group: int | str | None, formula_units: int | None, steering: Steering) -> Prompt:
    """`parse_prompt` of a structure that shall have this cell and this prototype; property lines are added elsewhere.

    Raises PromptError, which says what would fit, for a prototype or a cell that the formula or the group cannot have.
    """
    prompt = parse_prompt(source, space_group, formula_units)
    if steering.prototype is not None:
        prompt = _with_prototype(source, prompt, steering.prototype)
    if steering.cell != NO_CELL:
        _check_cell(prompt, steering)
        prompt = replace(prompt, request=replace(prompt.request, cell=steering.cell))
    return replace(prompt, steering=steering)


def _with_prototype(source: str, prompt: Prompt, prototype: Prototype) -> Prompt:
    request, counts = prompt.request, _stated_counts(prompt.text)
    group, units = prototype.space_group, prototype.formula_units
    if counts is not None and sorted(counts) != sorted(prototype.counts):
        fitting = ", ".join(prototypes_for(counts)) or "none"
        raise PromptError(
            f"{prompt.name}: {prototype.name} is {prototype.formula}, as {prototype.example}; prototypes that this "
            f"formula can have: {fitting}"
        )
    n_elements = None if request.elements is None else len(request.elements)
    if n_elements not in (None, len(prototype.counts)):
        raise PromptError(
            f"{prompt.name}: {prototype.name} is {prototype.formula}, of {len(prototype.counts)} elements; the system "
            f"has {n_elements}"
        )
    if request.space_groups not in (None, (group,)) or request.formula_units not in (None, units):
        raise PromptError(
            f"{prompt.name}: {prototype.name} has {units} formula unit{'s' * (units > 1)} in the primitive cell of "
            f"{space_group_symbols()[group - 1]} (no. {group}); another space group or number was asked for"
        )
    prompt = parse_prompt(source, group, units)
    return replace(prompt, request=replace(prompt.request, arrangements=prototype.arrangements))


def _stated_counts(text: str) -> tuple[int, ...] | None:
    """Of the formula in a prompt's text; None where it has none."""
    stated = re.search(r"^data_(\S+)\n", text, re.MULTILINE)
    return None if stated is None else tuple(parse_formula(stated[1]).values())


def _check_cell(prompt: Prompt, steering: Steering) -> None:
    for number in prompt.request.space_groups or ():
        if complete_cell(number, steering.cell) is None:
            ties = space_group(number).ties
            wanted = [f"{CELL_NAMES[later]} = {CELL_NAMES[first]}" for later, first in ties.equal_lengths]
            named = zip(CELL_NAMES[3:], ties.angles, strict=True)
            wanted += [f"{name} = {angle:g}°" for name, angle in named if angle is not None]
            wanted += ["beta ≥ 90°"] if space_group(number).crystal_system == "monoclinic" else []
            got = ", ".join(f"{name} = {value:g}" for name, value in steering.settings["cell"].items())
            raise PromptError(
                f"{prompt.name}: the conventional cell of {space_group_symbols()[number - 1]} (no. {number}) has "
                f"{', '.join(wanted)}; asked for {got}"
            )


def benchmark_prompt(crystal: Crystal) -> Prompt:
    """What a benchmark may tell: the reduced formula and the number of atoms in the cell as it is given.

    The latter is an upper bound, since any divisor may be the primitive cell's; nothing here comes from the symmetry.
    """
    composition = crystal.composition
    formula, multiple = reduce_composition(composition)
    text = formula_text(formula)
    return Prompt(f"{text}, {crystal.n_atoms} atoms", f"data_{text}{_UNITS}", Request(given_units=multiple))


def _formula_prompt(source: str, conditions: str, composition: dict[str, int], request: Request) -> Prompt:
    formula, multiple = reduce_composition(composition)
    for symbol, count in formula.items():
        if count > _MAX_COUNT:
            raise PromptError(
                f"{source!r}: {count} {symbol} in the reduced formula, at most {_MAX_COUNT} can be written"
            )
    request = replace(request, conventional_units=multiple if multiple > 1 else None)
    text = f"{conditions}data_{formula_text(formula)}{_UNITS}"
    if request.formula_units is not None:
        text += f"{request.formula_units}{_GROUP}"
        if request.space_groups is not None:
            text += f" {space_group_symbols()[request.space_groups[0] - 1]}"
    _check_satisfiable(source, tuple(formula.values()), formula_text(formula), request)
    return Prompt(source, text, request)


def read_prompts(prompt: str | Path | Sequence[str] | None) -> list[str]:
    """The prompts that one argument stands for: itself, each line of a file, or the whole of a file of CIF text."""
    return [source for _, source in placed_prompts(prompt)]


def placed_prompts(prompt: str | Path | Sequence[str] | None) -> list[tuple[str, str]]:
    """`read_prompts`, each after its place: "prompts.txt, line 3"; "" where it stands in no file."""
    if prompt is None:
        return [("", "")]
    if not isinstance(prompt, (str, Path)):
        return [("", one) for one in prompt]
    if isinstance(prompt, str) and not _is_file_name(prompt):
        return [("", prompt)]
    path = Path(prompt)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PromptError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as err:
        raise PromptError(f"{path}: cannot read prompts from it: {err}") from err
    if text.strip() and (path.suffix.lower() == ".cif" or _CIF_LINE.search(text)):
        return [(str(path), text)]
    lines = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    for place, line in lines:
        if line.startswith(_PROPERTY_KEYWORDS):
            raise PromptError(
                f"{place}: {line!r} goes with the text below it, and here each line is a prompt of its own; ask with "
                "--property, or put that text alone in a .cif file"
            )
    prompts = [(place, line) for place, line in lines if line and not line.startswith("#")]
    if not prompts:
        raise PromptError(f"{path}: no prompt in it, wanted one a line")
    return prompts


def _is_file_name(prompt: str) -> bool:
    """Of a file that is there, or of one that can only have been meant as such. PromptError for an empty prompt."""
    if not prompt.strip():
        raise PromptError("an empty prompt; leave it out to ask for anything")
    if "\n" in prompt or len(prompt) > 255:
        return False
    return Path(prompt).is_file() or "/" in prompt or os.sep in prompt or prompt.lower().endswith(_FILE_ENDINGS)


# ---------------------------------------------------------------- from text to tokens


def begin(
    prompt: Prompt, rules: Rules, mode: Mode = "full", min_distance_ang: float | None = None
) -> tuple[list[int], Callable[[], Constraint]]:
    """The prompt's tokens, and a maker of constraints that have read them. Raises PromptError where they cannot."""
    if mode != "full" and (asked := _needs_full(prompt.request)):
        raise PromptError(f"{prompt.name}: {asked} needs constraints=full, got constraints={mode}")
    if mode == "none":
        return _begin_free(prompt, rules)

    def new() -> Syntax:
        return Syntax(rules, prompt.request) if mode == "syntax" else Full(rules, prompt.request, min_distance_ang)

    ids = _encode(prompt, rules)
    checked = new()
    for position, token in enumerate(ids):
        _check_token(checked, position, ids, prompt, rules)
        checked.advance(token)
    try:  # on to the first token that there is a choice about
        while not checked.finished and (only := checked.choice().token) >= 0:
            checked.advance(only)
    except DeadEnd as err:
        raise PromptError(f"{prompt.name}: nothing can follow: {err}") from err

    def make() -> Syntax:
        constraint = new()
        for token in ids:
            constraint.advance(token)
        return constraint

    return ids, make


def _needs_full(request: Request) -> str:
    """What of a request only full constraints hold; "" where nothing is."""
    if request.elements is not None:
        return "a chemical system"
    if request.cell != NO_CELL:
        return "a cell"
    if request.conventional_units is not None:
        return "a number of formula units in the conventional cell"
    return "a prototype" if request.arrangements is not None else ""


def _begin_free(prompt: Prompt, rules: Rules) -> tuple[list[int], Callable[[], Constraint]]:
    request = prompt.request
    written = {"space group": (request.space_groups, _GROUP), "formula units": (request.formula_units, _UNITS)}
    for name, (asked, keyword) in written.items():
        if asked is not None and not re.search(re.escape(keyword) + r"\s*\S", prompt.text):
            raise PromptError(f"{prompt.name}: constraints=none cannot ask for a {name} that the text does not state")
    slot = len(rules.grammar.slot_tokens)
    return rules.tokenizer.encode(prompt.text), lambda: Free(slot, ((rules.end_token,),))


def _encode(prompt: Prompt, rules: Rules) -> list[int]:
    """Ids of the text up to its last whole lexeme. A keyword may stand without its blank, the loop header in part."""
    text = prompt.text
    loop = text.rfind("\nloop_")
    if loop >= 0 and LOOP_HEADER.startswith(text[loop:]):
        text = text[:loop]
    return rules.tokenizer.encode(f"{text} " if re.search(r"\n_\w+(?<!H-M)$", text) else text)


def _check_token(constraint: Syntax, position: int, ids: list[int], prompt: Prompt, rules: Rules) -> None:
    token, tokenizer, slot_tokens = ids[position], rules.tokenizer, rules.grammar.slot_tokens

    def where() -> str:
        line = tokenizer.decode(ids[: position + 1]).lstrip("\n").count("\n") + 1
        rest = tokenizer.decode(ids[position : position + 40], errors="replace").split()
        return f"{prompt.name}, line {line}: got {rest[0] if rest else 'an empty line'!r}"

    try:
        rules.grammar.step(constraint.state, token)
        choice = constraint.choice()
    except GrammarError as err:
        raise PromptError(f"{where()}, wanted {str(err).partition('expected ')[2]}") from err
    except DeadEnd as err:
        raise PromptError(f"{where()}, but nothing can stand there: {err}") from err
    if choice.token >= 0:
        allowed = np.array([choice.token])
    else:
        allowed = slot_tokens[choice.slot] if choice.mask is None else slot_tokens[choice.slot][choice.mask]
    if token not in allowed:
        raise PromptError(f"{where()}, wanted {_listed([tokenizer.token(int(t)).strip() for t in allowed])}")


# ---------------------------------------------------------------- what no structure can satisfy


def _check_satisfiable(source: str, counts: tuple[int, ...], formula: str, request: Request) -> None:
    """Raises PromptError, with what would be possible, if no Wyckoff positions can hold what is asked for."""
    if request.space_groups is None and request.conventional_units is None:
        return  # P1 holds everything
    if possible_units(counts, request, _MAX_COUNT).any():
        return
    units, conventional = request.formula_units, request.conventional_units
    asked = [f"{source.strip() or formula}: no structure can have"]
    if units is not None:
        asked.append(f"{units} formula unit{'s' * (units > 1)} of {formula} in the primitive cell")
    if conventional is not None:
        asked.append("and" if units is not None else f"{conventional} formula units of {formula}")
        asked.append(f"{conventional} in the conventional cell" if units is not None else "in the conventional cell")
    if request.space_groups is not None:
        (number,) = request.space_groups
        asked.append(f"in {space_group_symbols()[number - 1]} (no. {number})")
    raise PromptError(f"{' '.join(asked)}; {_alternatives(counts, request)}")


def _alternatives(counts: tuple[int, ...], request: Request) -> str:
    if request.space_groups is None:
        factors = "1, 2, 3 or 4 times"
        return f"a conventional cell holds {factors} the formula units of the primitive one, by its centring"
    (number,) = request.space_groups
    n_centring = int(centrings()[number - 1])
    free = replace(request, formula_units=None, conventional_units=None)
    units = np.flatnonzero(possible_units(counts, free, 192)) + 1
    found = [f"its Wyckoff positions hold {_listed(units * n_centring)} in the conventional cell"]
    if n_centring > 1:
        found[0] += f", which is {_listed(units)} in the primitive one (--formula-units)"
    groups = _groups_with(counts, request)
    if len(groups):
        symbols = [space_group_symbols()[i] for i in groups[::-1]]
        found.append(f"the units asked for fit {_listed(symbols)}")
    return "; ".join(found)


def _groups_with(counts: tuple[int, ...], request: Request) -> np.ndarray:
    """Indices of the groups that hold what is asked for, were the group left open."""
    free = replace(request, space_groups=tuple(range(1, N_GROUPS + 1)))
    possible = [possible_groups(counts, units, free) for units in candidate_units(request, _MAX_COUNT)]
    return np.flatnonzero(np.any(possible, axis=0)) if possible else np.zeros(0, dtype=int)


def _listed(values: Sequence | np.ndarray) -> str:
    shown = [str(value) for value in values[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(values) > _SHOWN else "")
