"""More than one sample for one answer: the searches by name, and what each found and cost.

    result = search("CaTiO3", SearchConfig("space_groups"), GenerateConfig(num=4, seed=0))[0]
    result.records[result.answer], polymorph_table(result.polymorphs)

best_of_n         draw `num`, answer with the likeliest
self_consistency  draw `num`, answer from the largest cluster of matching ones
energy_votes      the same, each sample's vote weighed by its predicted formation energy
denoising_votes   the same, votes weighed by how well the refiner tells noise from the sample
formula_units     draw `num` for each number of formula units in the primitive cell, up to `max_formula_units`
space_groups      draw `num` for each of the `groups` space groups that the model finds likeliest for the formula
beam              the `width` likeliest ways to choose formula units, space group and Wyckoff letters (beam.py)
mcts              tree search of `num` rollouts, led by a scorer (mcts.py)
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.sample.beam import BeamConfig, beam_search
from crystallm.sample.composition import candidate_units, possible_groups, possible_units
from crystallm.sample.constraints import FORCED, DeadEnd, Syntax
from crystallm.sample.engine import Job, Sample
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import SAMPLE_SCORES, GenerateConfig, Generator
from crystallm.sample.logits import Draw
from crystallm.sample.mcts import MCTSConfig, Policy, mcts
from crystallm.sample.prefixes import NextToken, choice_slots, replay
from crystallm.sample.prompts import Prompt
from crystallm.sample.scorers import Scorer, find_scorer
from crystallm.sample.selection import PolymorphRow, check_selection, polymorphs

if TYPE_CHECKING:
    from crystallm.records import CIFRecord

MAX_UNITS = 192  # looked at where formula units are summed over
UNITS_MASS = 0.999  # of the formula units' probability that counts for a space group's


@dataclass(frozen=True)
class SearchConfig:
    name: str = "self_consistency"
    select: str | None = None  # how the answer is selected (selection.SELECTIONS); None: as the search's name says
    max_formula_units: int = 8  # search over formula units
    groups: int | None = 10  # the most likely space groups; None: all that can hold the formula
    width: int = 10  # beam, and children of a node of the tree
    branch: str = "choices"  # beam: choices | tokens
    policy: Policy = "puct"  # tree: puct | uct | greedy
    exploration: float | None = None  # tree: c of its policy; None: the policy's own
    leaves: int = 16  # tree: rollouts at once
    scorer: str = "likelihood"  # tree: a name in scorers.SCORERS or module:function, after "min:" the lowest is best

    def __post_init__(self) -> None:
        if self.name not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {self.name!r}")
        for name in ("max_formula_units", "width", "leaves", "groups"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.branch not in ("choices", "tokens"):
            raise ValueError(f"branch must be choices or tokens, got {self.branch!r}")

    @property
    def settings(self) -> dict[str, Any]:
        """Those that this search looks at, as plain data."""
        return {name: value for name, value in asdict(self).items() if name in ("name", *SEARCHES[self.name].settings)}


@dataclass(frozen=True, eq=False)
class SearchResult:
    prompt: str
    records: list[CIFRecord]  # rejected ones too; numbered through
    answer: int | None  # of the records; None: none is valid
    selected_by: str
    polymorphs: list[PolymorphRow]
    n_structures: int  # drawn, dead ends that were drawn again among them
    n_tokens: int  # drawn, or read by the model where nothing is drawn
    strata: dict[str, float] = field(default_factory=dict)  # the model's probability of each stratum, if there are any


@dataclass(frozen=True)
class _Search:
    run: Callable[[Generator, Sequence[Prompt], GenerateConfig, SearchConfig], list[_Found]]
    select: str
    settings: tuple[str, ...] = ()  # SearchConfig's that it looks at, besides name and select
    needs_canonical: bool = False  # models that write our text, under full constraints
    score_of: Callable[[SearchConfig], str | None] = lambda _: None  # its own, among the scores of its records
    unused: tuple[str, ...] = ()  # GenerateConfig's that it does not look at


def searches_with(setting: str) -> list[str]:
    """Names of the searches that look at a setting of SearchConfig or GenerateConfig."""
    if setting in ("name", "select"):
        return list(SEARCHES)
    if setting in {one.name for one in fields(SearchConfig)}:
        return [name for name, kind in SEARCHES.items() if setting in kind.settings]
    return [name for name, kind in SEARCHES.items() if setting not in kind.unused]


@dataclass(eq=False)
class _Found:
    records: list[CIFRecord]
    n_structures: int
    n_tokens: int
    strata: dict[str, float] = field(default_factory=dict)
    best: str | None = None  # a score, where the search has its own


def search(
    prompt: str | Sequence[str] | None, settings: SearchConfig | None = None, config: GenerateConfig | None = None
) -> list[SearchResult]:
    """A result for each prompt. Same seed, same results. Raises PromptError for what cannot be searched."""
    config = config or GenerateConfig()
    generator = Generator.load(config.model, config.device)
    asked = replace(config, prompt=prompt if prompt is None or isinstance(prompt, str) else tuple(prompt))
    return search_from(generator, generator.prompts(asked), settings, config)


def search_from(
    generator: Generator,
    prompts: Sequence[Prompt],
    settings: SearchConfig | None = None,
    config: GenerateConfig | None = None,
) -> list[SearchResult]:
    """`search` for prompts made elsewhere."""
    settings, config = settings or SearchConfig(), config or GenerateConfig()
    kind = SEARCHES[settings.name]
    if config.seed is None:
        config = replace(config, seed=secrets.randbits(32))
    if odd := [name for name in ("until_valid", "unique", "novel") if getattr(config, name)]:
        raise ValueError(f"a search draws as many as its settings say: it goes without {odd[0]}")
    if config.refine:
        raise ValueError("a search goes without refine: refine what it found, or wrote, with bin/refine.py")
    if config.guidance != 1 and settings.name in ("beam", "mcts"):
        raise ValueError(f"search={settings.name} takes no guidance, got {config.guidance:g}")
    if kind.needs_canonical and (generator.form.best_constraints, config.constraints or "full") != ("full", "full"):
        raise ValueError(f"search={settings.name} needs a model of canonical text and constraints=full")
    if settings.select is not None:
        check_selection(settings.select, (*SAMPLE_SCORES, *filter(None, [kind.score_of(settings)])))
    results = []
    scorer_of = functools.cache(functools.partial(Scorer.of_selection, device=config.device))
    scorer_of(settings.select or kind.select)  # a predictor that is not there is told before anything is drawn
    is_model_s_own = config.draw == Draw()
    found = kind.run(generator, prompts, config, settings)
    for number, (one, prompt) in enumerate(zip(found, prompts, strict=True)):
        by = settings.select or one.best or kind.select
        scorer = scorer_of(by)
        drawn = one.records if scorer is None else scorer.apply(one.records)[0]
        name = f"{number:04d}-" if len(prompts) > 1 else ""
        drawn = [replace(record, id=f"gen-{name}{k:06d}") for k, record in enumerate(drawn)]
        rows = polymorphs(drawn, by, weighted=one.best is None and is_model_s_own)
        answer = next((k for k, record in enumerate(drawn) if rows and record.id == rows[0].id), None)
        cost = {"structures": one.n_structures, "tokens": one.n_tokens}
        records = []
        for k, record in enumerate(drawn):
            stated = {**settings.settings, **record.provenance.get("search", {})}
            stated |= {"selected_by": by, "cost": cost, "answer": k == answer}
            records.append(replace(record, provenance={**record.provenance, "search": stated}))
        results.append(
            SearchResult(prompt.source, records, answer, by, rows, one.n_structures, one.n_tokens, one.strata)
        )
    return results


# ---------------------------------------------------------------- draws, in strata or not


def _draw(generator: Generator, prompts: Sequence[Prompt], config: GenerateConfig, _: SearchConfig) -> list[_Found]:
    return _pooled(generator, [[(prompt, {})] for prompt in prompts], config)


def _pooled(
    generator: Generator, strata: Sequence[Sequence[tuple[Prompt, dict[str, Any]]]], config: GenerateConfig
) -> list[_Found]:
    """`num` samples of each stratum of each prompt, drawn all together."""
    drawn = iter(generator.generate_from([prompt for of_prompt in strata for prompt, _ in of_prompt], config))
    found = []
    for of_prompt in strata:
        records = []
        for _, stratum in of_prompt:
            for record in itertools.islice(drawn, config.num):
                search_stated = {"search": {"stratum": stratum}} if stratum else {}
                records.append(replace(record, provenance=record.provenance | search_stated))
        restarts = sum(record.provenance["restarts"] for record in records)
        tokens = sum(record.provenance["tokens"] for record in records)
        found.append(_Found(records, len(records) + restarts, tokens))
    return found


def _by_formula_units(
    generator: Generator, prompts: Sequence[Prompt], config: GenerateConfig, settings: SearchConfig
) -> list[_Found]:
    """The request asks for the units, not the text: so their probability stays in the likelihood and in the weights."""
    strata = []
    for prompt in prompts:
        constraint = _start(generator, prompt, config)
        if prompt.request.formula_units is not None or constraint.formula_units:
            raise PromptError(f"{prompt.name} states the formula units already: nothing is left to search")
        units = candidate_units(prompt.request, settings.max_formula_units)
        if constraint.counts:
            possible = possible_units(constraint.counts, prompt.request, settings.max_formula_units)
            units = [n for n in units if possible[n - 1]]
        asked = [(n, replace(prompt, request=replace(prompt.request, formula_units=n))) for n in units]
        possible_ones = [(one, {"formula_units": n}) for n, one in asked if _is_possible(generator, one, config)]
        if not possible_ones:
            raise PromptError(f"{prompt.name}: no number of formula units up to {settings.max_formula_units} is left")
        strata.append(possible_ones)
    return _pooled(generator, strata, config)


def _is_possible(generator: Generator, prompt: Prompt, config: GenerateConfig) -> bool:
    """Whether something can follow the prompt. Without a formula that is known only when it is begun."""
    try:
        generator.begin(prompt, "full", config.min_distance_ang)
    except PromptError:
        return False
    return True


def _by_space_group(
    generator: Generator, prompts: Sequence[Prompt], config: GenerateConfig, settings: SearchConfig
) -> list[_Found]:
    strata, probabilities = [], []
    for prompt in prompts:
        likely = group_probabilities(generator, prompt, config)
        kept = list(likely)[: settings.groups]
        probabilities.append({str(number): likely[number] for number in kept})
        strata.append(
            [
                (replace(prompt, request=replace(prompt.request, space_groups=(number,))), {"space_group": number})
                for number in kept
            ]
        )
    found = _pooled(generator, strata, config)
    for one, likely_ones in zip(found, probabilities, strict=True):
        one.strata = likely_ones
    return found


def group_probabilities(generator: Generator, prompt: Prompt, config: GenerateConfig | None = None) -> dict[int, float]:
    """The model's probability of each space group that can hold the formula, the likeliest first.

    Summed over the formula units, those that hold all but 0.1 % of the probability; of what the constraints allow.
    Raises PromptError for a prompt without formula, or with a space group.
    """
    config = config or GenerateConfig()
    ids, new_constraint = generator.begin(prompt, "full", config.min_distance_ang)
    begun = _start(generator, prompt, config)
    if not begun.counts or begun.request.space_groups is not None:
        wanted = "with a formula" if not begun.counts else "without a space group"
        raise PromptError(f"{prompt.name}: a search over space groups wants a prompt {wanted}")
    next_token = NextToken(generator.model, generator.form.slot_tokens)
    heads: list[tuple[float, list[int]]] = [(0.0, ids)]  # nats, tokens up to the formula units
    if not begun.formula_units:
        slot, token, mask = begun.choice()
        tokens, log_probs = np.array([token]), np.zeros(1)
        if token < 0:
            tokens, log_probs, log_mass = next_token.options(next_token.after([ids], [slot])[0], slot, mask)
            log_probs = log_probs - log_mass
            log_probs = log_probs[: int(np.searchsorted(np.cumsum(np.exp(log_probs)), UNITS_MASS)) + 1]
        heads = [(log_prob, [*ids, int(t)]) for log_prob, t in zip(log_probs.tolist(), tokens, strict=False)]
    summed: dict[int, float] = {}  # by number
    for log_prob, head in heads:
        constraint = replay(new_constraint, head[len(ids) :])
        try:
            if (keyword := constraint.choice()).slot == FORCED:
                constraint.advance(keyword.token)
                head = [*head, keyword.token]
            slot, token, mask = constraint.choice()
        except DeadEnd:
            continue  # no group holds so many
        tokens, log_probs = np.array([token]), np.zeros(1)
        if token < 0:
            tokens, log_probs, _ = next_token.options(next_token.after([head], [slot])[0], slot, mask)
        numbers = [generator.rules.group_of[one] for one in tokens.tolist()]
        # The mask asks for room only; as a request of its own, a group must also hold what no supergroup does.
        assert isinstance(constraint, Syntax)
        request = replace(constraint.request, space_groups=tuple(numbers))
        held = possible_groups(constraint.counts, constraint.formula_units, request)[np.array(numbers) - 1]
        if held.any():
            log_probs = log_prob + log_probs - np.logaddexp.reduce(log_probs[held])
        for number, probability in zip(np.array(numbers)[held].tolist(), np.exp(log_probs[held]).tolist(), strict=True):
            summed[number] = summed.get(number, 0.0) + probability
    return dict(sorted(summed.items(), key=lambda item: -item[1]))


def _start(generator: Generator, prompt: Prompt, config: GenerateConfig) -> Syntax:
    constraint = generator.begin(prompt, "full", config.min_distance_ang)[1]()
    assert isinstance(constraint, Syntax)
    return constraint


# ---------------------------------------------------------------- beam and tree


def _beam(
    generator: Generator, prompts: Sequence[Prompt], config: GenerateConfig, settings: SearchConfig
) -> list[_Found]:
    jobs = [Job(k, *generator.begin(prompt, "full", config.min_distance_ang)) for k, prompt in enumerate(prompts)]
    beams = beam_search(
        generator.model,
        generator.form.slot_tokens,
        jobs,
        choice_slots(generator.rules.grammar),
        BeamConfig(settings.width, settings.branch, config.batch),  # type: ignore[arg-type]
    )
    found = []
    for prompt, beam in zip(prompts, beams, strict=True):
        records = generator.records_of([one.sample for one in beam.samples], prompt, config)
        records = [
            replace(record, scores=record.scores | {"beam_score_nats": one.score})
            for record, one in zip(records, beam.samples, strict=True)
        ]
        found.append(_Found(records, beam.n_hypotheses, beam.n_tokens, best="beam_score_nats"))
    return found


def _mcts(
    generator: Generator, prompts: Sequence[Prompt], config: GenerateConfig, settings: SearchConfig
) -> list[_Found]:
    assert config.seed is not None
    scorer = find_scorer(settings.scorer, device=config.device)
    tree = MCTSConfig(
        rollouts=config.num,
        policy=settings.policy,
        exploration=settings.exploration,
        width=settings.width,
        leaves=settings.leaves,
    )
    found, seen = [], dict[str, int]()
    for prompt in prompts:
        ids, new_constraint = generator.begin(prompt, "full", config.min_distance_ang)
        key = f"{prompt.text}{prompt.request}"
        seen[key] = seen.get(key, -1) + 1  # a prompt that stands there twice is searched with other random numbers
        index = int.from_bytes(hashlib.sha256(f"{key}{seen[key]}".encode()).digest()[:4], "big")
        records: list[CIFRecord] = []

        def judge(samples: Sequence[Sample], prompt: Prompt = prompt, records: list = records) -> list[float | None]:
            new, values = scorer.apply(generator.records_of(samples, prompt, config, len(records)))
            records += new
            return values

        rollouts = mcts(
            generator.model,
            generator.form.slot_tokens,
            Job(index, ids, new_constraint, config.restarts),
            choice_slots(generator.rules.grammar),
            judge,
            tree,
            config.seed,
            config.draw,
        )
        restarts = sum(one.sample.n_restarts for one in rollouts)
        tokens = sum(one.n_tokens for one in rollouts)
        found.append(_Found(records, len(rollouts) + restarts, tokens, best=scorer.selection))
    return found


SEARCHES: dict[str, _Search] = {
    "best_of_n": _Search(_draw, "likelihood"),
    "self_consistency": _Search(_draw, "self_consistency"),
    "energy_votes": _Search(_draw, "energy_votes"),
    "denoising_votes": _Search(_draw, "denoising_votes"),
    "formula_units": _Search(_by_formula_units, "weighted_self_consistency", ("max_formula_units",), True),
    "space_groups": _Search(_by_space_group, "weighted_self_consistency", ("groups",), True),
    "beam": _Search(
        _beam,
        "beam_score_nats",
        ("width", "branch"),
        True,
        lambda _: "beam_score_nats",
        unused=("num", "temperature", "top_k", "top_p", "restarts", "dtype", "workers"),
    ),
    "mcts": _Search(
        _mcts,
        "likelihood",
        ("width", "policy", "exploration", "leaves", "scorer"),
        True,
        lambda settings: find_scorer(settings.scorer).name,
        unused=("batch", "dtype", "workers"),
    ),
}
