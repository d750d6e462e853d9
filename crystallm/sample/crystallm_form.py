"""Prompts and samples of released CrystaLLM models (crystallm_text.py says what their text is).

Na2Cl2, "Na Cl"    the atoms of the conventional cell: two of each, one of each
Li-Fe-O            a chemical system: all of these elements, counts left to the model
data_Na4Cl4\\n...   the beginning of a text
nothing            everything is left to the model
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from crystallm.sample.composition import Request
from crystallm.sample.constraints import Constraint, DeadEnd
from crystallm.sample.crystallm_syntax import (
    MAX_DIGITS,
    CrystaLLMSyntax,
    FreeText,
    groups_that_hold,
    words_of,
)
from crystallm.sample.crystallm_text import GROUP_LINE, cell_formula, full_cif, head
from crystallm.sample.formulas import PromptError, parse_chemical_system, parse_formula
from crystallm.sample.prompts import Mode, Prompt
from crystallm.sample.steering import NOTHING, Steering
from crystallm.sample.text_forms import Begun
from crystallm.space_groups import SpaceGroupError, space_group_number, space_group_symbols
from tokenizer import GrammarError
from tokenizer.crystallm_v1 import normalize_v1
from tokenizer.elements import ELEMENT_ORDER

if TYPE_CHECKING:
    from crystallm.records import CIFRecord
    from tokenizer import CIFTokenizer


class CrystaLLMForm:
    best_constraints: Mode = "syntax"
    note = (
        "a CrystaLLM model: formulas of prompts are the atoms of the conventional cell; log p in nats over all tokens "
        "of its own text"
    )

    def __init__(self, tokenizer: CIFTokenizer):
        self.words = words_of(tokenizer.vocabulary)
        self.slot_tokens = [np.arange(tokenizer.vocab_size)]

    def prompt(
        self,
        source: str,
        space_group: int | str | None = None,
        formula_units: int | None = None,
        steering: Steering = NOTHING,
    ) -> Prompt:
        if steering != NOTHING:
            raise PromptError("a CrystaLLM model has no property lines, and no constraint on cell and prototype")
        if formula_units is not None:
            raise PromptError(
                "a CrystaLLM model is not asked for formula units of the primitive cell: its formula is the atoms of "
                "the conventional cell, Na4Cl4 for rock salt"
            )
        request = Request(space_groups=self._group_asked(space_group))
        text = source.replace("\r\n", "\n").strip()
        if "\n" in text:
            return Prompt(source, _prefix(source), request)
        text = text.removeprefix("data_")
        if not text:
            return Prompt(source, "data_", replace(request, is_open=True))
        if re.search(r"[A-Za-z]\s*-", text):
            elements = parse_chemical_system(text)
            self._check_elements(source, [ELEMENT_ORDER[rank] for rank in elements])
            return Prompt(source, "data_", replace(request, elements=elements, is_open=True))
        composition = parse_formula(text)
        self._check_elements(source, list(composition))
        if (most := max(composition.values())) >= 10**MAX_DIGITS:
            raise PromptError(f"{source!r}: {most} atoms of one element, at most {10**MAX_DIGITS - 1} can be written")
        if request.space_groups is None:
            return Prompt(source, f"data_{cell_formula(composition)}\n", request)
        return Prompt(source, head(composition, self.words.group_symbol[request.space_groups[0]]), request)

    def _group_asked(self, space_group: int | str | None) -> tuple[int] | None:
        if space_group is None:
            return None
        try:
            number = space_group_number(space_group)
        except SpaceGroupError as err:
            raise PromptError(str(err)) from None
        if number not in self.words.group_symbol:
            lacking = ", ".join(self.words.tokenizer.missing["space_groups"])
            symbol = space_group_symbols()[number - 1]
            raise PromptError(f"{symbol} (no. {number}) has no token in this vocabulary; without one are {lacking}")
        return (number,)

    def _check_elements(self, source: str, symbols: list[str]) -> None:
        for symbol in symbols:
            if symbol not in self.words.element_id:
                lacking = ", ".join(self.words.tokenizer.missing["elements"][:14])  # the others are beyond lawrencium
                raise PromptError(f"{source!r}: {symbol} has no token in this vocabulary; without one are {lacking}, …")

    def begin(self, prompt: Prompt, mode: Mode, min_distance_ang: float | None = None) -> Begun:
        if mode == "full":
            raise PromptError("a CrystaLLM model has constraints none and syntax (the default), got full")
        if min_distance_ang is not None:
            raise PromptError("a CrystaLLM model has no constraint on distances: the checks reject what is too close")
        try:
            ids = list(self.words.encode(prompt.text))
        except ValueError as err:
            raise PromptError(f"{prompt.name}: {err}") from None
        request = prompt.request
        if mode == "none":
            if request.elements is not None or (request.space_groups is not None and GROUP_LINE not in prompt.text):
                raise PromptError(f"{prompt.name}: constraints=none cannot ask for what the text does not state")
            return ids, lambda: FreeText(self.words)
        self._check(prompt, ids)

        def new() -> Constraint:
            constraint = CrystaLLMSyntax(self.words, request)
            for token in ids:
                constraint.advance(token)
            return constraint

        return ids, new

    def _check(self, prompt: Prompt, ids: list[int]) -> None:
        """Raises PromptError with the place where the prompt leaves the syntax, or if nothing can follow it."""
        constraint, decode = CrystaLLMSyntax(self.words, prompt.request), self.words.tokenizer.decode
        for position, token in enumerate(ids):
            if token in self.words.group_of:
                _check_holds(prompt, constraint.composition, self.words.group_of[token])
            try:
                constraint.advance(token)
            except GrammarError as err:
                before, rest = decode(ids[:position]), decode(ids[position:]).partition("\n")[0]
                line = before.count("\n") + 1
                raise PromptError(f"{prompt.name}, line {line}, at {rest or 'its end'!r}: {err}") from None
        try:
            if not constraint.finished:
                constraint.choice()
        except DeadEnd as err:
            raise PromptError(f"{prompt.name}: {err}") from None

    def finish(self, record: CIFRecord) -> CIFRecord:
        """What the model wrote goes to provenance["model_text"]."""
        from crystallm.asymmetric_unit import CanonicalError
        from crystallm.canonical import canonicalize
        from crystallm.cif import CIFError, parse_cif

        try:
            cif = full_cif(record.text, record.provenance)
        except CIFError as err:
            return replace(record, rejected_by=err.reason, reason=err.message)
        try:
            text = canonicalize(parse_cif(cif)[0]).to_text()
        except CanonicalError:  # the checks say whether the crystal is one all the same
            text = ""
        return replace(record, cif=cif, text=text, provenance=record.provenance | {"model_text": record.text})


def _prefix(source: str) -> str:
    """Lines as the models read them; only where the source ends within a line does the last one stay open."""
    text = normalize_v1(source.replace("\r\n", "\n"))[:-2]
    # The group's token is told by the newline behind it.
    is_whole = source.endswith("\n") or text.rpartition("\n")[2].startswith(GROUP_LINE)
    return f"{text}\n" if is_whole else text


def _check_holds(prompt: Prompt, composition: Mapping[str, int], number: int) -> None:
    """Raises PromptError, with what would be possible, if the group's positions cannot hold the formula."""
    counts = tuple(sorted(composition.values()))
    if groups_that_hold(counts)[number - 1]:
        return
    times = [n for n in range(2, 25) if groups_that_hold(tuple(n * count for count in counts))[number - 1]]
    formulas = [cell_formula({symbol: n * count for symbol, count in composition.items()}) for n in times[:4]]
    instead = f"; it can hold {', '.join(formulas)}" if formulas else ""
    raise PromptError(
        f"{prompt.name}: the conventional cell of {space_group_symbols()[number - 1]} (no. {number}) cannot hold "
        f"{cell_formula(composition)}{instead}"
    )
