"""Beam search: the `width` likeliest ways to go on are kept at each choice. Knows token ids only.

One step of a cell length is no other crystal, so a beam over all tokens soon holds one structure with neighbouring
numbers. By default, therefore, a beam branches where choices are discrete (CHOICE_SLOTS: formula, formula units, space
group, Wyckoff letters), takes the likeliest number elsewhere, and ranks by the probability of the choices alone:
digits would otherwise count against crystals with many free parameters. With `branch="tokens"` it is the plain beam
over everything, ranked by log-likelihood, which at full width finds the likeliest sequence there is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import Constraint
from crystallm.sample.decoder import PackedDecoder
from crystallm.sample.engine import Job, Sample, follow
from crystallm.sample.prefixes import NextToken, Options, replay

Branch = Literal["choices", "tokens"]


@dataclass(frozen=True)
class BeamConfig:
    width: int = 10
    branch: Branch = "choices"
    rows: int = 256  # hypotheses in the decoder at once, of all beams together

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        if self.branch not in ("choices", "tokens"):
            raise ValueError(f"branch must be choices or tokens, got {self.branch!r}")


@dataclass(frozen=True, eq=False)
class BeamSample:
    sample: Sample
    score: float  # nats: log-probability of the choices, or of all tokens


@dataclass(frozen=True, eq=False)
class BeamResult:
    samples: list[BeamSample]  # best first
    n_hypotheses: int  # begun, the kept ones among them
    n_tokens: int  # that the model read


def beam_search(
    model: GPT,
    slot_tokens: Sequence[np.ndarray],
    jobs: Sequence[Job],
    choices: frozenset[int],
    config: BeamConfig | None = None,
    max_len: int | None = None,
) -> Iterator[BeamResult]:
    """For each job its at most `width` best sequences that end, best first; where none ends, what it failed with.

    Nothing is drawn: the same jobs give the same sequences. `choices`: slots where a beam of kind "choices" branches.
    """
    config = config or BeamConfig()
    next_token = NextToken(model, slot_tokens)
    beams_at_once = max(1, config.rows // config.width)
    for start in range(0, len(jobs), beams_at_once):
        branching = choices if config.branch == "choices" else None
        limit = max_len or model.config.block_size
        beams = [_Beam(job, config.width, branching, limit) for job in jobs[start : start + beams_at_once]]
        _run(model, next_token, beams)
        yield from (beam.result() for beam in beams)


def _run(model: GPT, next_token: NextToken, beams: Sequence[_Beam]) -> None:
    """All beams together, one choice at a time; between two choices every hypothesis goes on by itself."""
    decoder = PackedDecoder(model, len(beams))
    while hypotheses := [one for beam in beams for one in beam.open]:
        decoder.keep([one.place for one in hypotheses])  # a child begins with its parent's keys and values
        for place, one in enumerate(hypotheses):
            one.place = place
        moving = [one for one in hypotheses if not one.is_over]
        while moving:
            _read(moving, decoder, next_token)
            moving = [one for one in moving if one.options is None and not one.is_over]
        for beam in beams:
            beam.branch()


def _read(hypotheses: Sequence[_Hypothesis], decoder: PackedDecoder, next_token: NextToken) -> None:
    """Feed what was not read yet, score what nobody chose, and take the likeliest token where no beam branches."""
    ids: list[int] = []
    places: list[int] = []
    positions: list[int] = []
    wanted: dict[int, list[tuple[int, _Hypothesis, int]]] = {}  # slot -> (hidden state, hypothesis, token's position)
    for one in hypotheses:  # by ascending place, as the decoder wants them
        begin, end = one.n_read, len(one.ids)
        offset = len(ids) - begin
        ids += one.ids[begin:end]
        places += [one.place] * (end - begin)
        positions += range(begin, end)
        for position, slot in one.forced:
            wanted.setdefault(slot, []).append((offset + position - 1, one, position))
        if not one.stopped:
            wanted.setdefault(one.slot, []).append((offset + end - 1, one, end))
        one.n_read = end
        one.beam.n_tokens += end - begin
    hidden = decoder.forward(ids, places, positions)
    ahead: list[tuple[_Hypothesis, Options]] = []
    for slot, of_slot in wanted.items():
        log_probs = next_token.log_probs(hidden[[state for state, *_ in of_slot]], slot)
        for (_, one, position), row in zip(of_slot, log_probs, strict=True):
            if position == len(one.ids):
                ahead.append((one, next_token.options(row, slot, one.mask)))
            else:
                (index,) = np.flatnonzero(next_token.slot_tokens[slot] == one.ids[position])
                one.score_forced(position, slot, float(row[index]))
    for one in hypotheses:
        one.is_over = bool(one.stopped)
    for one, options in ahead:
        if one.branches(one.slot):
            one.options = options
        else:
            one.take(options, 0)


class _Hypothesis:
    """A sequence on its way, up to the next token that is not forced."""

    options: Options | None = None  # set while it waits for its beam to branch
    place = 0  # its row in the decoder
    n_read = 0  # tokens that the model has read
    score = 0.0
    is_over = False  # stopped, and everything is scored

    def __init__(self, beam: _Beam):
        self.beam = beam
        self.constraint = beam.job.new_constraint()
        self.ids = list(beam.job.prompt)
        self.log_probs, self.log_masses = [0.0] * len(self.ids), [0.0] * len(self.ids)
        self._extend()

    def branches(self, slot: int) -> bool:
        return self.beam.branching is None or slot in self.beam.branching

    def child(self, constraint: Constraint) -> _Hypothesis:
        new = copy.copy(self)
        new.constraint = constraint
        new.ids, new.log_probs, new.log_masses = self.ids[:], self.log_probs[:], self.log_masses[:]
        return new

    def take(self, options: Options, k: int) -> None:
        self.options = None
        self.ids.append(int(options.tokens[k]))
        self.log_probs.append(float(options.log_probs[k]))
        self.log_masses.append(options.log_mass)
        self.score += self.log_probs[-1] if self.branches(self.slot) else 0.0
        self.constraint.advance(self.ids[-1])
        self._extend()

    def score_forced(self, position: int, slot: int, log_prob: float) -> None:
        self.log_probs[position] = self.log_masses[position] = log_prob
        self.score += log_prob if self.branches(slot) else 0.0

    def _extend(self) -> None:
        ahead = follow(self.constraint, self.ids, self.beam.max_len)
        self.slot, self.mask, self.forced, self.stopped, self.reason = ahead
        unscored = [0.0] * (len(self.ids) - len(self.log_probs))
        self.log_probs += unscored
        self.log_masses += unscored
        self.is_over = bool(self.stopped) and not self.forced

    def sample(self) -> BeamSample:
        assert self.stopped
        job = self.beam.job
        arrays = np.array(self.log_probs), np.array(self.log_masses)
        sample = Sample(job.index, self.ids, len(job.prompt), self.stopped, self.reason, 0, *arrays)
        return BeamSample(sample, self.score)


class _Beam:
    """The hypotheses of one job. `branching`: slots at which it branches; None: at all."""

    def __init__(self, job: Job, width: int, branching: frozenset[int] | None, max_len: int):
        self.job, self.width, self.branching, self.max_len = job, width, branching, max_len
        self.n_hypotheses, self.n_tokens = 1, 0
        self.open = [_Hypothesis(self)]
        self.ended: list[_Hypothesis] = []
        self.failed: list[_Hypothesis] = []

    def branch(self) -> None:
        """Put aside what is over, and go on with the best children of what is not."""
        for one in self.open:
            if one.is_over:
                (self.ended if one.stopped == "end" else self.failed).append(one)
        self.ended = sorted(self.ended, key=_rank)[: self.width]
        self.failed = sorted(self.failed, key=_rank)[: self.width]
        # A probability only falls: what is below `width` that have ended cannot come back.
        least = self.ended[-1].score if len(self.ended) == self.width else -np.inf
        children: list[tuple[float, int, int]] = []  # score, parent, option
        waiting = [one for one in self.open if one.options is not None]
        for parent, one in enumerate(waiting):
            assert one.options is not None
            scores = one.score + one.options.log_probs[: self.width]
            children += [(score, parent, k) for k, score in enumerate(scores.tolist()) if score > least]
        children = sorted(children, key=lambda child: (-child[0], child[1:]))[: self.width]
        self.open = []
        for parent, one in enumerate(waiting):
            options = one.options
            assert options is not None
            picks = [k for _, owner, k in children if owner == parent]
            for k in picks[1:]:
                new = one.child(replay(self.job.new_constraint, one.ids[len(self.job.prompt) :]))
                new.take(options, k)
                self.open.append(new)
            for k in picks[:1]:  # last: it takes the parent's own lists and constraint along
                one.take(options, k)
                self.open.append(one)
            self.n_hypotheses += max(0, len(picks) - 1)

    def result(self) -> BeamResult:
        return BeamResult([one.sample() for one in self.ended or self.failed], self.n_hypotheses, self.n_tokens)


def _rank(one: _Hypothesis) -> tuple[float, list[int]]:
    return -one.score, one.ids
