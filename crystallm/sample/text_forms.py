"""The texts that models write. A vocabulary has one form: its prompts, its constraints, and how a sample is read.

`CanonicalForm` is ours; released CrystaLLM models have another (crystallm_form.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from crystallm.sample.constraints import Constraint
from crystallm.sample.prompts import Mode, Prompt, begin, steered_prompt
from crystallm.sample.rules import Rules, rules_of
from crystallm.sample.steering import NOTHING, Steering

if TYPE_CHECKING:
    from crystallm.records import CIFRecord
    from tokenizer import CIFTokenizer

Begun = tuple[list[int], Callable[[], Constraint]]  # ids of a prompt, and a maker of constraints that have read them


class TextForm(Protocol):
    best_constraints: Mode  # what a sampler uses if nothing is asked for
    slot_tokens: list[np.ndarray]  # ids among which the slots of the constraints choose
    note: str  # what a user should know of samples of this form; "" for ours

    def prompt(
        self,
        source: str,
        space_group: int | str | None = None,
        formula_units: int | None = None,
        steering: Steering = NOTHING,
    ) -> Prompt:
        """Raises PromptError for what cannot be read, or what no structure can satisfy.

        Property lines are not added yet: `steering.add_lines` knows which ones a model can be asked for.
        """
        ...

    def begin(self, prompt: Prompt, mode: Mode, min_distance_ang: float | None = None) -> Begun:
        """Raises PromptError for what the model has no tokens or no constraints for."""
        ...

    def finish(self, record: CIFRecord) -> CIFRecord:
        """A record whose `text` is a sample that ended, with its full CIF, or with the reason why it has none.

        What comes back has in `text` the crystal's canonical text, whatever the model wrote.
        """
        ...


class CanonicalForm:
    best_constraints: Mode = "full"
    note = ""

    def __init__(self, tokenizer: CIFTokenizer):
        self.rules: Rules = rules_of(tokenizer.vocabulary)
        # The last is for constraints=none.
        self.slot_tokens = [*self.rules.grammar.slot_tokens, np.arange(tokenizer.vocab_size)]

    def prompt(
        self,
        source: str,
        space_group: int | str | None = None,
        formula_units: int | None = None,
        steering: Steering = NOTHING,
    ) -> Prompt:
        return steered_prompt(source, space_group, formula_units, steering)

    def begin(self, prompt: Prompt, mode: Mode, min_distance_ang: float | None = None) -> Begun:
        return begin(prompt, self.rules, mode, min_distance_ang)

    def finish(self, record: CIFRecord) -> CIFRecord:
        from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError
        from crystallm.cif import write_cif

        try:
            return replace(record, cif=write_cif(AsymmetricUnit.from_text(record.text), record.provenance))
        except CanonicalError as err:
            return replace(record, rejected_by=err.reason, reason=str(err))
        except ValueError as err:  # a cell without volume
            return replace(record, rejected_by="bad_cell", reason=str(err))


def text_form(tokenizer: CIFTokenizer) -> TextForm:
    """The form that goes with a vocabulary, by its kind."""
    from crystallm.sample.crystallm_form import CrystaLLMForm
    from crystallm.sample.plain_form import PlainForm

    forms: dict[str, Callable[[CIFTokenizer], TextForm]] = {
        "lexemes": CanonicalForm,
        "pieces": PlainForm,
        "crystallm_v1": CrystaLLMForm,
    }
    return forms[tokenizer.vocabulary.kind](tokenizer)
