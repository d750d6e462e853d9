"""Draws token sequences from a model, hundreds of rows at once. Knows token ids only: no text, no crystals.

A row whose sequence ends makes room for the next job. What a constraint leaves no choice about is fed to the model
together with the next drawn token. Every sequence has its own random numbers, from (seed, index), so it depends neither
on the batch nor on the row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import FORCED, Constraint, DeadEnd
from crystallm.sample.decoder import PackedDecoder
from crystallm.sample.logits import Draw, choose

N_UNIFORMS = 64  # random numbers drawn at a time


@dataclass(frozen=True, eq=False)
class Job:
    index: int  # with the seed, decides the random numbers
    prompt: Sequence[int]  # at least one token
    new_constraint: Callable[[], Constraint]  # one that has already advanced over the prompt
    restarts: int = 0  # so many dead ends are drawn again, from the prompt on, before one ends the sample


@dataclass(frozen=True, eq=False)
class Sample:
    index: int
    ids: list[int]  # prompt included
    n_prompt: int
    stopped: Literal["end", "dead_end", "unfinished"]
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
    def __init__(self, model: GPT, slot_tokens: Sequence[np.ndarray], batch: int = 256, max_len: int | None = None):
        """`slot_tokens`: ids among which a constraint's slots choose. `batch`: rows at once.

        `max_len`: tokens of the longest sequence, by default (and at most) what the model takes.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        block_size = model.config.block_size
        if max_len is not None and not 1 <= max_len <= block_size:
            raise ValueError(f"max_len must be from 1 to block_size={block_size}, got {max_len}")
        self.model, self.batch, self.max_len = model.eval(), batch, max_len or block_size
        self.slot_tokens = [np.asarray(tokens, dtype=np.int64) for tokens in slot_tokens]
        with torch.no_grad():
            table = model.table()  # (vocab_size, C)
        self.device = table.device
        self._vectors = [table[torch.from_numpy(tokens).to(self.device)] for tokens in self.slot_tokens]
        self._index = np.full((len(self.slot_tokens), len(table)), -1, dtype=np.int32)  # place of a token in its slot
        for slot, tokens in enumerate(self.slot_tokens):
            self._index[slot, tokens] = np.arange(len(tokens))

    def run(self, jobs: Iterable[Job], seed: int, draw: Draw | None = None) -> Iterator[Sample]:
        """Samples as they end; what is longer than `max_len` is unfinished. Raises ValueError for a prompt too long."""
        draw = draw or Draw()
        waiting = iter(jobs)
        first = itertools.islice(waiting, self.batch)
        rows = [_Row(job, self.max_len, seed, place) for place, job in enumerate(first)]
        decoder = PackedDecoder(self.model, len(rows)) if rows else None
        while rows:
            assert decoder is not None
            self._step(rows, decoder, draw)
            ended = [row for row in rows if row.is_over]
            rows = [row for row in rows if not row.is_over]
            for place, job in zip([row.place for row in ended], waiting, strict=False):
                rows.append(_Row(job, self.max_len, seed, place))
            if len(rows) <= decoder.n_rows // 2:  # nobody is waiting any more
                decoder.keep([row.place for row in rows])
                for place, row in enumerate(rows):
                    row.place = place
            yield from (row.sample() for row in ended)

    def _step(self, rows: list[_Row], decoder: PackedDecoder, draw: Draw) -> None:
        """Feed every row its waiting tokens, score those that were forced, and draw each row's next."""
        ids: list[int] = []
        places: list[int] = []
        positions: list[int] = []
        forced: dict[int, list[tuple[int, _Row, int]]] = {}  # slot -> (hidden state, row, position of the token)
        drawn: dict[int, list[tuple[int, _Row]]] = {}  # slot -> (hidden state, row)
        for row in sorted(rows, key=lambda row: row.place):
            begin, end = row.n_read, len(row.ids)
            offset = len(ids) - begin  # hidden state of position p: offset + p
            ids += row.ids[begin:end]
            places += [row.place] * (end - begin)
            positions += range(begin, end)
            for position, slot in enumerate(row.forced_slots, end - len(row.forced_slots)):
                if slot != FORCED:
                    forced.setdefault(slot, []).append((offset + position - 1, row, position))
            if not row.stopped:
                drawn.setdefault(row.slot, []).append((offset + end - 1, row))
            row.n_read = end
        hidden = decoder.forward(ids, places, positions)  # (N, C)
        for slot in forced.keys() | drawn.keys():
            self._choose(slot, forced.get(slot, []), drawn.get(slot, []), hidden, draw)
        for row in rows:
            if row.stopped:
                row.is_over = True
            else:
                row.extend()

    @torch.no_grad()
    def _choose(
        self,
        slot: int,
        forced: list[tuple[int, _Row, int]],
        drawn: list[tuple[int, _Row]],
        hidden: Tensor,
        draw: Draw,
    ) -> None:
        states = hidden[[state for state, *_ in (*forced, *drawn)]]
        logits = (states @ self._vectors[slot].T).float()  # (n_forced + n_drawn, tokens of the slot)
        if logits.device.type == "mps":
            logits = logits.cpu()  # float64, which the draw needs, does not exist there
        total = logits.logsumexp(dim=-1)
        if forced:
            index = self._index[slot, [row.ids[position] for _, row, position in forced]]
            log_probs = logits[range(len(forced)), index.tolist()] - total[: len(forced)]
            for (_, row, position), log_prob in zip(forced, log_probs.tolist(), strict=True):
                row.log_probs[position] = row.log_masses[position] = log_prob
        if not drawn:
            return
        logits, total = logits[len(forced) :], total[len(forced) :]
        log_masses = [0.0] * len(drawn)
        masks = [row.mask for _, row in drawn]
        allowed = logits
        if any(mask is not None for mask in masks):
            everything = np.ones(logits.shape[1], dtype=bool)
            stacked = np.stack([everything if mask is None else mask for mask in masks])
            allowed = logits.masked_fill(~torch.from_numpy(stacked).to(logits.device), -torch.inf)
            log_masses = (allowed.logsumexp(dim=-1) - total).tolist()
        uniforms = None
        if not draw.is_greedy:
            uniforms = torch.tensor([row.uniform() for _, row in drawn], dtype=torch.float64, device=logits.device)
        picks = choose(allowed, uniforms, draw)  # (n_drawn,)
        log_probs = logits.gather(1, picks[:, None])[:, 0] - total
        tokens = self.slot_tokens[slot][picks.cpu().numpy()].tolist()
        for (_, row), token, log_prob, log_mass in zip(drawn, tokens, log_probs.tolist(), log_masses, strict=True):
            row.take(token, log_prob, log_mass)


class _Row:
    """A sequence on its way: `ids` up to the next token that has to be drawn."""

    def __init__(self, job: Job, max_len: int, seed: int, place: int):
        """`place`: its row in the decoder."""
        if not 1 <= len(job.prompt) <= max_len:
            raise ValueError(f"sample {job.index}: a prompt has 1 to {max_len} tokens, got {len(job.prompt)}")
        self.job, self.max_len, self.place = job, max_len, place
        self.n_restarts = 0
        self.random = np.random.Generator(np.random.Philox(key=seed + (job.index << 64)))
        self.uniforms: list[float] = []
        self.stopped: Literal["", "end", "dead_end", "unfinished"] = ""
        self.reason = ""
        self.is_over = False  # stopped, and everything is scored
        self.begin()
        self.extend()

    def begin(self) -> None:
        self.constraint = self.job.new_constraint()
        self.ids = list(self.job.prompt)
        self.log_probs, self.log_masses = [0.0] * len(self.ids), [0.0] * len(self.ids)
        self.n_read = 0  # tokens that the model has read
        self.forced_slots: list[int] = []  # of the last tokens, those nobody drew
        self.slot, self.mask = FORCED, None  # type: int, np.ndarray | None

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
        """Append what the constraint leaves no choice about."""
        self.forced_slots = []
        try:
            while not self.constraint.finished:
                slot, token, mask = self.constraint.choice()
                if len(self.ids) == self.max_len:
                    self.stopped, self.reason = "unfinished", f"no end after {self.max_len} tokens"
                    break
                if token < 0:
                    self.slot, self.mask = slot, mask
                    return
                self.ids.append(token)
                self.log_probs.append(0.0)
                self.log_masses.append(0.0)
                self.forced_slots.append(slot)
                self.constraint.advance(token)
            else:
                self.stopped = "end"
        except DeadEnd as err:
            if self.n_restarts < self.job.restarts:
                self.n_restarts += 1
                self.begin()
                return self.extend()
            self.stopped, self.reason = "dead_end", str(err)
        self.is_over = all(slot == FORCED for slot in self.forced_slots)

    def sample(self) -> Sample:
        assert self.stopped
        log_probs, log_masses = np.array(self.log_probs), np.array(self.log_masses)
        n_prompt = len(self.job.prompt)
        return Sample(
            self.job.index, self.ids, n_prompt, self.stopped, self.reason, self.n_restarts, log_probs, log_masses
        )
