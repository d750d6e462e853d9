"""Draws token sequences from a model, hundreds of rows at once. Knows token ids only: no text, no crystals.

A row whose sequence ends makes room for the next job. What a constraint leaves no choice about is fed to the model
together with the next drawn token. Every sequence has its own random numbers, from (seed, index), so it depends neither
on the batch nor on the row.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import FORCED, Constraint, DeadEnd
from crystallm.sample.decoder import PackedDecoder
from crystallm.sample.logits import Draw, choose_masked
from crystallm.sample.transfer import moved, moved_mask

N_UNIFORMS = 64  # random numbers drawn at a time
Stopped = Literal["", "end", "dead_end", "unfinished"]  # "": it goes on


@dataclass(frozen=True, eq=False)
class Job:
    index: int  # with the seed, decides the random numbers
    prompt: Sequence[int]  # at least one token
    new_constraint: Callable[[], Constraint]  # one that has already advanced over the prompt
    restarts: int = 0  # so many dead ends are drawn again, from the prompt on, before one ends the sample
    n_condition: int = 0  # tokens at the prompt's beginning that guidance leaves out; at least one must remain


@dataclass(frozen=True, eq=False)
class Sample:
    index: int
    ids: list[int]  # prompt included
    n_prompt: int
    stopped: Stopped
    reason: str  # why there is no end
    n_restarts: int  # dead ends before this sequence
    # Per token of `ids`, 0 for the prompt and where the grammar leaves no choice, nats:
    log_probs: np.ndarray  # under the grammar softmax at temperature 1, before any other constraint
    log_masses: np.ndarray  # log of the share of that softmax which the constraint let through

    @property
    def log_likelihood(self) -> float:
        return float(self.log_probs.sum())

    @property
    def log_mass(self) -> float:
        """Log of the importance weight at temperature 1: the constraint made it exp(-log_mass) times likelier."""
        return float(self.log_masses.sum())


class Engine:
    def __init__(
        self,
        model: GPT,
        slot_tokens: Sequence[np.ndarray],
        batch: int = 256,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        """`slot_tokens`: ids among which a constraint's slots choose. `batch`: rows at once.

        `max_len`: tokens of the longest sequence, by default (and at most) what the model takes. `dtype`: of the
        blocks' matrix products, by default the model's; logits, and the draw, stay in the model's.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        block_size = model.config.block_size
        if max_len is not None and not 1 <= max_len <= block_size:
            raise ValueError(f"max_len must be from 1 to block_size={block_size}, got {max_len}")
        self.model = model.eval() if model.training else model  # eval() makes the model forget its table
        self.batch, self.max_len, self.dtype = batch, max_len or block_size, dtype
        self.slot_tokens = [np.asarray(tokens, dtype=np.int64) for tokens in slot_tokens]
        with torch.no_grad():
            self._heads = [Head(model, tokens) for tokens in self.slot_tokens]
            self.device = model.table().device
        self._index = np.full((len(self.slot_tokens), model.spec.vocab_size), -1, dtype=np.int32)  # token -> place
        for slot, tokens in enumerate(self.slot_tokens):
            self._index[slot, tokens] = np.arange(len(tokens))

    def run(self, jobs: Iterable[Job], seed: int, draw: Draw | None = None) -> Iterator[Sample]:
        """Samples as they end; what is longer than `max_len` is unfinished. Raises ValueError for a prompt too long."""
        draw = draw or Draw()
        waiting = iter(jobs)
        first = itertools.islice(waiting, self.batch)
        rows: list[_Row | None] = [_Row(job, self.max_len, seed) for job in first]  # by place in the decoder
        decoder = PackedDecoder(self.model, len(rows), dtype=self.dtype) if rows else None
        guide = PackedDecoder(self.model, len(rows), dtype=self.dtype) if rows and draw.guidance != 1 else None
        n_left = len(rows)
        while n_left:
            assert decoder is not None
            self._step(rows, decoder, draw, guide)
            ended: list[_Row] = []
            for place, row in enumerate(rows):
                if row is not None and row.is_over:
                    ended.append(row)
                    job = next(waiting, None)
                    if job is None:
                        rows[place] = None
                        decoder.forget([place])
                        if guide is not None:
                            guide.forget([place])
                        n_left -= 1
                    else:
                        rows[place] = _Row(job, self.max_len, seed, row)
            yield from (row.sample() for row in ended)

    @torch.no_grad()
    def _step(
        self, rows: Sequence[_Row | None], decoder: PackedDecoder, draw: Draw, guide: PackedDecoder | None = None
    ) -> None:
        """Feed every row its waiting tokens, score those that were forced, and draw each row's next.

        `guide`: keeps the sequences without their condition, where guidance asks for it.
        """
        ids: list[int] = []
        places: list[int] = []
        positions: list[int] = []
        of_slot: dict[int, _Scored] = collections.defaultdict(_Scored)
        for place, row in enumerate(rows):
            if row is None or row.is_over:
                continue
            begin, end = row.n_read, len(row.ids)
            offset = len(ids) - begin  # hidden state of position p: offset + p
            ids += row.ids[begin:]
            places += [place] * (end - begin)
            positions += range(begin, end)
            for position, slot in row.forced:
                of_slot[slot].forced.append((offset + position - 1, row, position))
            if not row.stopped:
                of_slot[row.slot].drawn.append((offset + end - 1, row))
            row.n_read = end
        if not of_slot:
            return
        wanted = [state for scored in of_slot.values() for state in scored.states]
        hidden = decoder.forward(ids, places, positions, wanted)  # (n, C)
        any_drawn = any(scored.drawn for scored in of_slot.values())
        unguided = self._unguided(rows, guide, of_slot) if guide is not None and any_drawn else None
        results, done, n_drawn = [], 0, 0
        for slot, scored in of_slot.items():
            count = len(scored.forced) + len(scored.drawn)
            plain = None if unguided is None else unguided[n_drawn : n_drawn + len(scored.drawn)]
            results += self._choose(slot, scored, hidden[done : done + count], draw, plain)
            done, n_drawn = done + count, n_drawn + len(scored.drawn)
        self._take(of_slot, torch.cat(results).tolist())  # the step's only transfer from the device
        for row in rows:
            if row is not None and row.stopped:
                row.is_over = True
            elif row is not None:
                row.extend()

    def _unguided(self, rows: Sequence[_Row | None], guide: PackedDecoder, of_slot: dict[int, _Scored]) -> Tensor:
        """(n_drawn, C): hidden states that the rows to be drawn would have without their condition, in order of slots.

        A row without condition is read all the same: its two states are equal then, up to rounding.
        """
        ids: list[int] = []
        places: list[int] = []
        positions: list[int] = []
        last: dict[_Row, int] = {}  # index of the state that says what follows
        for place, row in enumerate(rows):
            if row is None or row.is_over or row.stopped:
                continue
            plain = row.ids[row.job.n_condition :]
            ids += plain[row.n_guided :]
            places += [place] * (len(plain) - row.n_guided)
            positions += range(row.n_guided, len(plain))
            last[row] = len(ids) - 1
            row.n_guided = len(plain)
        return guide.forward(ids, places, positions, [last[row] for s in of_slot.values() for _, row in s.drawn])

    def _choose(
        self, slot: int, scored: _Scored, hidden: Tensor, draw: Draw, unguided: Tensor | None = None
    ) -> list[Tensor]:
        """float64: log-probabilities of the forced tokens; then picks, log-probabilities, log-masses of the drawn.

        Log-probabilities are those with the condition, whatever the guidance; log-masses of what is drawn from.
        """
        n_forced, drawn = len(scored.forced), [row for _, row in scored.drawn]
        logits = self._heads[slot](hidden).float()  # (n_forced + n_drawn, tokens of the slot)
        if logits.device.type == "mps":
            logits = logits.cpu()  # float64, which the draw needs, does not exist there
        top = logits.amax(dim=-1, keepdim=True)
        weights = torch.sub(logits, top).exp_()
        totals = top[:, 0] + weights.sum(dim=-1).log()
        results = []
        if n_forced:
            index = self._index[slot, [row.ids[position] for _, row, position in scored.forced]]
            picks = moved(index.astype(np.int64), logits.device)
            results.append((logits[:n_forced].gather(1, picks[:, None])[:, 0] - totals[:n_forced]).double())
        if drawn:
            logits, weights, totals = logits[n_forced:], weights[n_forced:], totals[n_forced:]
            uniforms, mask = None, None
            if not draw.is_greedy:
                uniforms = moved(np.array([row.uniform() for row in drawn]), logits.device)
            if any(row.mask is not None for row in drawn):
                everything = np.ones(logits.shape[1], dtype=bool)
                masks = np.stack([everything if row.mask is None else row.mask for row in drawn])
                mask = moved_mask(masks, logits.device)
            drawn_from = logits
            if unguided is not None:
                plain = self._heads[slot](unguided).float().to(logits.device)
                drawn_from = plain + draw.guidance * (logits - plain)
                weights = torch.exp(drawn_from - drawn_from.amax(dim=-1, keepdim=True))
            picks, log_masses = choose_masked(drawn_from, weights, mask, uniforms, draw)
            log_probs = logits.gather(1, picks[:, None])[:, 0] - totals
            results += [picks.double(), log_probs.double(), log_masses.double()]
        return results

    def _take(self, of_slot: dict[int, _Scored], numbers: list[float]) -> None:
        done = 0
        for slot, scored in of_slot.items():
            n_forced, n = len(scored.forced), len(scored.drawn)
            for (_, row, position), log_prob in zip(scored.forced, numbers[done:], strict=False):
                row.log_probs[position] = row.log_masses[position] = log_prob
            done += n_forced
            picks, log_probs, log_masses = (numbers[done + k * n : done + (k + 1) * n] for k in range(3))
            done += 3 * n
            tokens = self.slot_tokens[slot][np.array(picks, dtype=np.int64)].tolist()
            for (_, row), token, log_prob, log_mass in zip(scored.drawn, tokens, log_probs, log_masses, strict=True):
                row.take(token, log_prob, log_mass)


class _Scored:
    """Rows with a token to be scored, or drawn, in one slot, each with the index of the hidden state that says how."""

    def __init__(self) -> None:
        self.forced: list[tuple[int, _Row, int]] = []  # and the position of the token
        self.drawn: list[tuple[int, _Row]] = []

    @property
    def states(self) -> list[int]:
        return [state for state, _, _ in self.forced] + [state for state, _ in self.drawn]


class Head:
    """(n, C) hidden states -> (n, K) logits of a slot's tokens, up to a number that they share."""

    def __init__(self, model: GPT, tokens: np.ndarray):
        table, factors = model.table(), model.embedding.factors(tokens)
        self.factor: Tensor | None = None
        if factors is None:
            self.vectors = table[torch.from_numpy(tokens).to(table.device)].T
        else:
            # Numbers without a vector of their own: their vectors are made of n_hidden features each. The 9,900
            # lengths take a sixth of the time so.
            self.vectors, self.factor = factors[0].T.to(table.dtype), factors[1].to(table.dtype)

    def __call__(self, hidden: Tensor) -> Tensor:
        return (hidden if self.factor is None else hidden @ self.factor) @ self.vectors


def n_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


class Ahead(NamedTuple):
    """The next choice of a sequence, or why there is none."""

    slot: int
    mask: np.ndarray | None
    forced: list[tuple[int, int]]  # position and slot of tokens that nobody drew, though the grammar left a choice
    stopped: Stopped
    reason: str


def follow(constraint: Constraint, ids: list[int], max_len: int) -> Ahead:
    """Append to `ids` what the constraint leaves no choice about, up to the next choice or the end."""
    forced: list[tuple[int, int]] = []
    try:
        while not constraint.finished:
            slot, token, mask = constraint.choice()
            if len(ids) == max_len:
                return Ahead(FORCED, None, forced, "unfinished", f"no end after {max_len} tokens")
            if token < 0:
                return Ahead(slot, mask, forced, "", "")
            if slot != FORCED:
                forced.append((len(ids), slot))
            ids.append(token)
            constraint.advance(token)
    except DeadEnd as err:
        return Ahead(FORCED, None, forced, "dead_end", str(err))
    return Ahead(FORCED, None, forced, "end", "")


class _Row:
    """A sequence on its way: `ids` up to the next token that has to be drawn."""

    def __init__(self, job: Job, max_len: int, seed: int, before: _Row | None = None):
        """`before`: what the decoder's row holds already; where both begin alike, nothing is read again."""
        if not 1 <= len(job.prompt) <= max_len:
            raise ValueError(f"sample {job.index}: a prompt has 1 to {max_len} tokens, got {len(job.prompt)}")
        self.job, self.max_len = job, max_len
        self.n_restarts = 0
        self.random = np.random.Generator(np.random.Philox(key=seed + (job.index << 64)))
        self.uniforms: list[float] = []
        self.stopped: Stopped = ""
        self.reason = ""
        self.is_over = False  # stopped, and everything is scored
        # Tokens that the model has read
        self.n_read: int = 0 if before is None else n_shared(job.prompt, before.ids[: before.n_read])
        self.n_guided: int = 0  # without the condition
        if not 0 <= job.n_condition < len(job.prompt):
            raise ValueError(
                f"sample {job.index}: a condition is less than the prompt of {len(job.prompt)}, got {job.n_condition}"
            )
        self.begin()
        self.extend()

    def begin(self) -> None:
        self.constraint = self.job.new_constraint()
        self.ids = list(self.job.prompt)
        self.log_probs, self.log_masses = [0.0] * len(self.ids), [0.0] * len(self.ids)
        # Of the prompt, the last token is read again: its state says what follows.
        self.n_read = min(self.n_read, len(self.ids) - 1)
        self.n_guided = min(self.n_guided, len(self.ids) - self.job.n_condition - 1)

    def uniform(self) -> float:
        if not self.uniforms:
            self.uniforms = self.random.random(N_UNIFORMS)[::-1].tolist()
        return self.uniforms.pop()

    def take(self, token: int, log_prob: float, log_mass: float) -> None:
        self.ids.append(token)
        self.log_probs.append(log_prob)
        self.log_masses.append(log_mass)
        self.constraint.advance(token)

    def extend(self) -> None:
        """Append what the constraint leaves no choice about; a dead end begins again, if it may."""
        ahead = follow(self.constraint, self.ids, self.max_len)
        while ahead.stopped == "dead_end" and self.n_restarts < self.job.restarts:
            self.n_restarts += 1
            self.begin()
            ahead = follow(self.constraint, self.ids, self.max_len)
        self.slot, self.mask, self.forced, self.stopped, self.reason = ahead
        unscored = [0.0] * (len(self.ids) - len(self.log_probs))
        self.log_probs += unscored
        self.log_masses += unscored
        self.is_over = bool(self.stopped) and not self.forced

    def sample(self) -> Sample:
        assert self.stopped
        log_probs, log_masses = np.array(self.log_probs), np.array(self.log_masses)
        n_prompt = len(self.job.prompt)
        return Sample(
            self.job.index, self.ids, n_prompt, self.stopped, self.reason, self.n_restarts, log_probs, log_masses
        )
