"""Monte Carlo tree search with any judge of whole sequences. Knows token ids only; the judge knows what they mean.

The tree branches where choices are discrete (CHOICE_SLOTS: formula, formula units, space group, Wyckoff letters).
Numbers between two choices are drawn, so one choice can lead to several prefixes: progressive widening lets in another
one each time the visits reach the next square (Couëtoux et al. 2011). A leaf is a choice that still has room for a
prefix; the engine draws its sequence to the end, many leaves at a time. A virtual loss for each leaf under way spreads
them (Chaslot et al. 2008). Tree policies, with W and N the sum and the number of a choice's rewards and p its prior:

    puct    W/N + c p sqrt(N_parent) / (1 + N)       Silver et al. 2017; 0 for W/N before the first visit
    uct     W/N + c sqrt(ln(N_parent) / N)           Kocsis and Szepesvári 2006; the likeliest of unvisited ones first
    greedy  W/N, but with probability `epsilon` any choice
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import DeadEnd
from crystallm.sample.engine import Engine, Job, Sample
from crystallm.sample.logits import Draw
from crystallm.sample.prefixes import NextToken, replay, replaying

Policy = Literal["puct", "uct", "greedy"]
Judge = Callable[[Sequence[Sample]], Sequence[float | None]]  # higher is better; None: invalid

INVALID_REWARD = -1.0


@dataclass(frozen=True)
class MCTSConfig:
    rollouts: int = 100
    policy: Policy = "puct"
    exploration: float | None = None  # c; None: 5 for puct, the square root of 2 for uct
    epsilon: float = 0.1  # of the greedy policy
    width: int = 10  # the likeliest tokens of each choice
    leaves: int = 16  # rollouts at once
    reward_slope: float = 2.0  # of the logistic, per standard deviation of the scores

    def __post_init__(self) -> None:
        if self.policy not in ("puct", "uct", "greedy"):
            raise ValueError(f"policy must be puct, uct or greedy, got {self.policy!r}")
        for name in ("rollouts", "width", "leaves"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.c >= 0 or not 0 <= self.epsilon <= 1:
            raise ValueError(f"wanted exploration >= 0 and epsilon in [0, 1], got {self.c} and {self.epsilon}")

    @property
    def c(self) -> float:
        default = {"puct": 5.0, "uct": math.sqrt(2), "greedy": 0.0}[self.policy]
        return default if self.exploration is None else self.exploration


@dataclass(frozen=True, eq=False)
class Rollout:
    sample: Sample
    score: float | None  # the judge's
    reward: float  # at the time it was judged
    depth: int  # choices that the tree made
    n_tokens: int  # drawn after these


class Rewards:
    """INVALID_REWARD for None, else a logistic of the score's z among all valid ones so far: 0.5 for their mean."""

    def __init__(self, slope: float):
        self.slope = slope
        self.n, self.mean, self.squares = 0, 0.0, 0.0  # Welford 1962

    def __call__(self, scores: Sequence[float | None]) -> list[float]:
        for score in scores:
            if score is not None:
                self.n += 1
                delta = score - self.mean
                self.mean += delta / self.n
                self.squares += delta * (score - self.mean)
        return [INVALID_REWARD if score is None else self._logistic(score) for score in scores]

    def _logistic(self, score: float) -> float:
        deviation = math.sqrt(self.squares / self.n)
        if deviation == 0:
            return 0.5
        z = max(-50.0, min(50.0, self.slope * (score - self.mean) / deviation))
        return 1 / (1 + math.exp(-z))


@dataclass(eq=False)
class Edge:
    """One token at a choice; above the root a token of no meaning, which leads to the prompt."""

    token: int
    prior: float  # among those of the node
    log_prob: float  # nats, under the softmax over the whole slot
    n: int = 0
    total: float = 0.0  # W
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)  # by their ids
    is_sure: bool = False  # nothing is drawn between here and what follows: one child at most
    is_done: bool = False  # all that it leads to was seen, and nothing in it is drawn

    @property
    def has_room(self) -> bool:
        """For another child: as many as the square root of its visits."""
        return len(self.children) < (1 if self.is_sure else max(1, math.isqrt(self.n)))


@dataclass(eq=False)
class Node:
    """A prefix that ends before a choice."""

    ids: list[int]  # prompt included
    log_probs: list[float]
    log_masses: list[float]
    log_mass: float  # of this choice
    edges: list[Edge]  # the likeliest first

    @property
    def is_done(self) -> bool:
        return all(edge.is_done for edge in self.edges)

    @property
    def n(self) -> int:
        return sum(edge.n for edge in self.edges)


def puct(edge: Edge, n_parent: int, c: float) -> float:
    mean = edge.total / edge.n if edge.n else 0.0
    return mean + c * edge.prior * math.sqrt(n_parent) / (1 + edge.n)


def uct(edge: Edge, n_parent: int, c: float) -> float:
    return edge.total / edge.n + c * math.sqrt(math.log(n_parent) / edge.n) if edge.n else math.inf


def mcts(
    model: GPT,
    slot_tokens: Sequence[np.ndarray],
    job: Job,
    choices: Iterable[int],
    judge: Judge,
    config: MCTSConfig | None = None,
    seed: int = 0,
    draw: Draw | None = None,
) -> list[Rollout]:
    """All rollouts, in the order drawn: at most `config.rollouts`, fewer where the tree within its width is exhausted.

    `choices`: slots at which the tree branches. The judge gets the samples of `config.leaves` rollouts at a time. Same
    seed, same rollouts.
    """
    return _Search(model, slot_tokens, job, choices, judge, config or MCTSConfig(), seed, draw).run()


class _Step(NamedTuple):
    """An edge on the way down, and the node it leaves from; None above the root."""

    edge: Edge
    node: Node | None


class _Pending(NamedTuple):
    """A node to be: what its edges are is not known yet."""

    edge: Edge  # that leads to it
    ids: list[int]
    log_probs: list[float]
    log_masses: list[float]
    slot: int
    mask: np.ndarray | None


class _Search:
    def __init__(
        self,
        model: GPT,
        slot_tokens: Sequence[np.ndarray],
        job: Job,
        choices: Iterable[int],
        judge: Judge,
        config: MCTSConfig,
        seed: int,
        draw: Draw | None,
    ):
        self.job, self.choices, self.judge, self.config, self.seed = job, frozenset(choices), judge, config, seed
        self.n_prompt, self.draw = len(job.prompt), draw or Draw()
        self.next_token = NextToken(model, slot_tokens)
        self.engine = Engine(model, slot_tokens, config.leaves)
        self.random = np.random.Generator(np.random.Philox(key=seed + (self._stream(-1) << 64)))
        self.rewards = Rewards(config.reward_slope)
        self.rollouts: list[Rollout] = []
        self.root = Edge(token=-1, prior=1.0, log_prob=0.0)

    def _stream(self, k: int) -> int:
        """Of random numbers: rollout k's; -1 the tree's own."""
        return (self.job.index << 24) + k + 1

    def run(self) -> list[Rollout]:
        while (left := self.config.rollouts - len(self.rollouts)) > 0 and not self.root.is_done:
            # The first one grows the tree's first node; before it, all leaves would be the prompt.
            n_leaves = min(self.config.leaves, left) if self.rollouts else 1
            self._round([self._descend() for _ in range(n_leaves)])
        return self.rollouts

    # ---- selection

    def _descend(self) -> list[_Step]:
        """The way to a leaf, with a virtual loss on each edge."""
        path = [_Step(self.root, None)]
        while (children := path[-1].edge.children.values()) and not path[-1].edge.has_room:
            node = min(children, key=lambda child: (child.is_done, child.n))
            path.append(_Step(self._pick(node), node))
        for edge, _ in path:
            edge.n += 1
            edge.total += INVALID_REWARD
        return path

    def _pick(self, node: Node) -> Edge:
        config = self.config
        edges = [edge for edge in node.edges if not edge.is_done] or node.edges
        if config.policy == "greedy":
            if self.random.random() < config.epsilon:
                return edges[int(self.random.integers(len(edges)))]
            return max(edges, key=lambda edge: (edge.total / edge.n if edge.n else 0.0, edge.prior))
        value, n_parent = {"puct": puct, "uct": uct}[config.policy], node.n
        return max(edges, key=lambda edge: (value(edge, n_parent, config.c), edge.prior))

    # ---- rollouts

    def _round(self, paths: Sequence[list[_Step]]) -> None:
        heads = [self._head(path[-1]) for path in paths]
        jobs = []
        for k, (ids, *_) in enumerate(heads, len(self.rollouts)):
            new_constraint = replaying(self.job.new_constraint, ids[self.n_prompt :])
            jobs.append(Job(self._stream(k), ids, new_constraint, self.job.restarts))
        drawn = {sample.index: sample for sample in self.engine.run(jobs, self.seed, self.draw)}
        samples = [self._whole(drawn[job.index], head) for job, head in zip(jobs, heads, strict=True)]
        scores = [None if score is None or math.isnan(score) else float(score) for score in self.judge(samples)]
        if len(scores) != len(samples):
            raise ValueError(f"the scorer gave {len(scores)} scores for {len(samples)} samples")
        starts = [len(ids) for ids, *_ in heads]
        judged = zip(paths, samples, scores, self.rewards(scores), starts, strict=True)
        for path, sample, score, reward, start in judged:
            for edge, _ in path:
                edge.total += reward - INVALID_REWARD  # the virtual loss goes
            self.rollouts.append(Rollout(sample, score, reward, len(path) - 1, len(sample.ids) - start))
        self._grow(paths, samples, starts)

    def _head(self, leaf: _Step) -> tuple[list[int], list[float], list[float]]:
        """Tokens up to and with the leaf's, their log-probabilities and masses."""
        edge, node = leaf
        if node is None:
            zeros = [0.0] * self.n_prompt
            return list(self.job.prompt), zeros, zeros
        return [*node.ids, edge.token], [*node.log_probs, edge.log_prob], [*node.log_masses, node.log_mass]

    def _whole(self, sample: Sample, head: tuple[list[int], list[float], list[float]]) -> Sample:
        """As if drawn from the prompt on: what the tree chose is scored too."""
        log_probs, log_masses = sample.log_probs.copy(), sample.log_masses.copy()
        log_probs[: len(head[1])], log_masses[: len(head[2])] = head[1], head[2]
        return replace(sample, n_prompt=self.n_prompt, log_probs=log_probs, log_masses=log_masses)

    # ---- expansion

    def _grow(self, paths: Sequence[list[_Step]], samples: Sequence[Sample], starts: Sequence[int]) -> None:
        """A node where each rollout first came to a choice, as far as its edge has room."""
        pending: dict[tuple[int, ...], _Pending] = {}
        for path, sample, start in zip(paths, samples, starts, strict=True):
            found = self._next_choice(path[-1].edge, sample, start)
            if found is not None and found.edge.has_room:
                pending.setdefault(tuple(found.ids), found)  # the edge's own tokens are among these ids
        new = [one for ids, one in pending.items() if ids not in one.edge.children]
        self._expand(new)
        for path in paths:
            for edge, _ in reversed(path):
                children = edge.children.values()
                edge.is_done |= edge.is_sure and bool(children) and all(child.is_done for child in children)

    def _next_choice(self, edge: Edge, sample: Sample, start: int) -> _Pending | None:
        """Also learns whether anything is drawn on the way there."""
        constraint = replay(self.job.new_constraint, sample.ids[self.n_prompt : start])
        is_sure = True
        try:
            for position in range(start, len(sample.ids)):
                slot, token, mask = constraint.choice()
                if token < 0 and slot in self.choices:
                    edge.is_sure = is_sure
                    before = slice(0, position)
                    log_probs, log_masses = sample.log_probs[before].tolist(), sample.log_masses[before].tolist()
                    return _Pending(edge, sample.ids[before], log_probs, log_masses, slot, mask)
                is_sure &= token >= 0
                constraint.advance(sample.ids[position])
            if not constraint.finished:
                constraint.choice()
        except DeadEnd:
            pass
        edge.is_sure = edge.is_done = is_sure  # the one sequence that there is was seen
        return None

    def _expand(self, pending: Sequence[_Pending]) -> None:
        if not pending:
            return
        scored = self.next_token.after([one.ids for one in pending], [one.slot for one in pending])
        for one, log_probs in zip(pending, scored, strict=True):
            if not one.edge.has_room:  # another rollout of this round took the place
                continue
            options = self.next_token.options(log_probs, one.slot, one.mask)
            kept = options.log_probs[: self.config.width]
            priors = np.exp(kept - np.logaddexp.reduce(kept))
            edges = [
                Edge(int(token), float(prior), float(log_prob))
                for token, prior, log_prob in zip(options.tokens, priors, kept, strict=False)
            ]
            node = Node(one.ids, one.log_probs, one.log_masses, options.log_mass, edges)
            one.edge.children[tuple(one.ids)] = node
