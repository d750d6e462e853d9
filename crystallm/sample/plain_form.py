"""Samples of models whose vocabulary has no grammar (tokenizer/pieces.py): texts that nothing constrains, in the
canonical layout or another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from crystallm.asymmetric_unit import CanonicalError
from crystallm.layout import Layout, layout_of
from crystallm.sample.constraints import Constraint, Free
from crystallm.sample.formulas import PromptError
from crystallm.sample.prompts import Mode, Prompt
from crystallm.sample.text_forms import CanonicalForm

if TYPE_CHECKING:
    from crystallm.records import CIFRecord
    from tokenizer import CIFTokenizer

SLOT = 0  # the only one: all tokens


class PlainForm(CanonicalForm):
    best_constraints: Mode = "none"
    note = "a vocabulary without a grammar: nothing constrains what is written"

    def __init__(self, tokenizer: CIFTokenizer):
        self.tokenizer = tokenizer
        self.layout = layout_of(tokenizer.vocabulary)
        self.slot_tokens = [np.arange(tokenizer.vocab_size)]

    def begin(
        self, prompt: Prompt, mode: Mode, min_distance_ang: float | None = None
    ) -> tuple[list[int], Callable[[], Constraint]]:
        """As much of the prompt as is cut into the same tokens whatever follows; the model writes the rest of it.

        As elsewhere, what a prompt ends with is whole: after `Pm-3m` comes a new line.
        """
        request, text = prompt.request, prompt.text
        if mode != "none" or min_distance_ang is not None:
            asked = f"constraints={mode}" if mode != "none" else f"a least distance of {min_distance_ang} Å"
            raise PromptError(f"{self.tokenizer.name!r} has no grammar, so samples cannot be constrained; got {asked}")
        written = re.search("\n_symmetry_space_group_name_H-M +\\S", text), re.search("_formula_units +\\S", text)
        asked_for = (request.space_groups, request.formula_units)
        lacking = any(one is not None and not found for one, found in zip(asked_for, written, strict=True))
        if lacking or request.elements is not None or request.conventional_units is not None:
            raise PromptError(f"{prompt.name}: without a grammar a prompt is a reduced formula or a CIF prefix")
        if not self.layout.shares(text):
            raise PromptError(
                f"{prompt.name}: {self.tokenizer.name!r} writes cell and sites in another way than the canonical text; "
                "a prompt ends before them"
            )
        variants = [self.tokenizer.encode(text + more) for more in _continuations(text)]
        ids = [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*variants, strict=False))]
        if not ids:
            raise PromptError(f"{prompt.name}: wanted a text that begins with data_, got {text[:40]!r}")
        end = self.tokenizer.end_id
        return ids, lambda: Free(SLOT, ((end,),))

    def finish(self, record: CIFRecord) -> CIFRecord:
        """In another layout than the canonical one, what the model wrote goes to provenance["model_text"]."""
        if self.layout == Layout():
            return super().finish(record)
        try:
            text = self.layout.read(record.text)
        except CanonicalError as err:
            return replace(record, rejected_by=err.reason, reason=str(err))
        return super().finish(replace(record, text=text, provenance=record.provenance | {"model_text": record.text}))


def _continuations(text: str) -> tuple[str, ...]:
    if text.endswith(("data_", " ")):
        return ("Na", "1", "P")
    if re.search(r"\n_[\w-]+$", text):
        return (" 1", " P")
    return ("\n_", "\nNa")
