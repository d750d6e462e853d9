"""Our constraints as a logits processor of Hugging Face `transformers`, for a model written by bin/export_hf.py.

    processor = GrammarLogitsProcessor(["Na Cl"] * 8)
    ids = model.generate(**tokenizer(processor.texts, return_tensors="pt"), logits_processor=[processor])

Our own engine draws from the same distribution, faster; this is for what is built on `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crystallm.sample.constraints import FORCED, Choice, Constraint, DeadEnd
from crystallm.sample.prompts import Mode, Prompt, begin, parse_prompt
from crystallm.sample.rules import rules_of
from tokenizer import CIFTokenizer

try:
    from transformers import LogitsProcessor
except ImportError as err:
    raise ImportError("crystallm.sample.hf needs transformers: install crystallm with its extra `hf`") from err

# Finite, since no token can be drawn from a row of -inf; so low that a beam search drops the sequence.
DEAD_END_SCORE = -1e4


class GrammarLogitsProcessor(LogitsProcessor):
    """Lets through what may come next in a canonical CIF, row by row.

    `prompts`: one for each row of the input, anything that bin/sample.py takes or a Prompt made by `parse_prompt`;
    with num_return_sequences or beams, one for each run of rows that share it. `texts` are what the rows have to begin
    with, padded on the left where they differ in length.

    The scores that come out are log-probabilities under the grammar softmax, so those of the tokens drawn at
    temperature 1 add up to the log-likelihood in nats; tokens that `mode` or the request rules out have -inf.
    A row that nothing can follow is ended by padding: it has no end and does not parse, and `dead_ends` says why.
    """

    def __init__(
        self,
        prompts: str | Prompt | Sequence[str | Prompt],
        tokenizer: CIFTokenizer | None = None,  # of the model; None: the `cif` vocabulary
        mode: Mode = "full",
        min_distance_ang: float | None = None,  # as bin/sample.py --min-distance
    ):
        """Raises PromptError for what cannot be asked, ValueError for a mode other than syntax and full."""
        if mode not in ("syntax", "full"):
            raise ValueError(f"mode must be syntax or full, got {mode!r}: without constraints, leave the processor out")
        self.tokenizer = tokenizer or CIFTokenizer()
        self.rules = rules_of(self.tokenizer.vocabulary)
        asked = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
        if not asked:
            raise ValueError("wanted at least one prompt, got none")
        parsed = [prompt if isinstance(prompt, Prompt) else parse_prompt(prompt) for prompt in asked]
        self._begun = [begin(prompt, self.rules, mode, min_distance_ang) for prompt in parsed]
        self.texts = [self.tokenizer.decode(ids) for ids, _ in self._begun]
        self.dead_ends: dict[int, str] = {}  # row -> why nothing could follow
        self._rows: dict[int, tuple[list[int], Constraint]] = {}  # what was read of each row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, vocab_size) -> (B, vocab_size). Raises ValueError for a row that lacks its prompt."""
        n_rows, n_prompts = len(input_ids), len(self._begun)
        if n_rows % n_prompts:
            raise ValueError(f"{n_rows} rows for {n_prompts} prompts: wanted the same number, or a multiple")
        masked = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            constraint = self._follow(row, ids, row // (n_rows // n_prompts))
            if constraint.finished:
                masked[row, self.tokenizer.pad_id] = 0.0
                continue
            try:
                choice = constraint.choice()
            except DeadEnd as err:
                self.dead_ends[row] = str(err)
                masked[row, self.tokenizer.pad_id] = DEAD_END_SCORE
                continue
            self._let_through(choice, scores[row], masked[row])
        return masked

    def _let_through(self, choice: Choice, scores: Tensor, masked: Tensor) -> None:
        """Write the log-probabilities of what may come: (vocab_size,), (vocab_size,)"""
        if choice.slot == FORCED:
            masked[choice.token] = 0.0
            return
        tokens = torch.from_numpy(self.rules.grammar.slot_tokens[choice.slot]).to(scores.device).long()
        log_probs = scores[tokens].float().log_softmax(dim=-1).to(masked.dtype)
        if choice.token >= 0:
            allowed = tokens == choice.token
        elif choice.mask is not None:
            allowed = torch.from_numpy(choice.mask).to(scores.device)
        else:
            allowed = torch.ones_like(tokens, dtype=torch.bool)
        masked[tokens[allowed]] = log_probs[allowed]

    def _follow(self, row: int, ids: list[int], prompt: int) -> Constraint:
        """The constraint that has read a row. Where the row is not the last one's continuation, it is read anew."""
        begun, make = self._begun[prompt]
        pad = self.tokenizer.pad_id
        start = next((place for place, token in enumerate(ids) if token != pad), len(ids))
        ids = ids[start:]
        read, constraint = self._rows.get(row, ([], None))
        if constraint is None or len(ids) < len(read) or ids[: len(read)] != read:
            if ids[: len(begun)] != begun:
                got = self.tokenizer.decode(ids[: len(begun)], errors="replace")
                raise ValueError(f"row {row} begins with {got!r}, wanted its prompt {self.texts[prompt]!r}")
            read, constraint = begun, make()
            self.dead_ends.pop(row, None)
        for token in ids[len(read) :]:
            if not constraint.finished and token != pad:  # padding follows an end, or a dead end
                constraint.advance(token)
        self._rows[row] = (ids, constraint)
        return constraint
