"""Whether a model makes what is asked of it: structures drawn for a grid of values of a property, and without.

    results = benchmark_steering(SteeringConfig(None, "density", (2, 4, 6, 8), prompts=("Li-Fe-O",)))
    print(steering_table(results))

With the composition left free a grid of values is asked for. In a chemical system, or of a formula, the values asked
for are quantiles of what the model draws there unasked, so each of them is in reach; the error then stands beside that
of the unasked samples to the same values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystallm.checks.known import canonical_text
from crystallm.metrics.novelty import unique_texts
from crystallm.records import CIFRecord
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.prompts import Prompt
from crystallm.sample.scorers import Scorer, computed, find_scorer

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SteeringConfig:
    model: str | None = None  # checkpoint trained with property lines
    property: str = "density"  # with its unit or without
    values: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)  # asked for, in the property's unit
    prompts: tuple[str, ...] = ()  # chemical systems, formulas
    quantiles: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # of what is drawn there unasked: the values asked for
    num: int = 50  # samples for each value
    scorer: str | None = None  # gives the values obtained; None: computed, which density and volume per atom can be
    temperature: float = 1.0
    guidance: float = 1.0  # of the steered samples
    seed: int = 0
    device: str = "auto"
    batch: int = 256
    workers: int | None = 0

    def __post_init__(self) -> None:
        if not self.values and not self.prompts:
            raise ValueError("wanted at least one value, or one prompt, got neither")
        if self.prompts and not self.quantiles:
            raise ValueError("prompts are asked for quantiles of what they give; got none")
        if any(not 0 <= q <= 1 for q in self.quantiles):
            raise ValueError(f"quantiles must be from 0 to 1, got {self.quantiles}")


@dataclass(frozen=True)
class Drawn:
    """What came of one prompt. Median and quartiles are nan where nothing is valid."""

    asked: float | None  # None: nothing was
    n_drawn: int
    n_unique: int  # different crystals among the valid
    obtained: tuple[float, ...]  # of the valid ones, in order

    @property
    def n_valid(self) -> int:
        return len(self.obtained)

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.obtained, q)) if self.obtained else float("nan")

    def error(self, asked: float) -> float:
        """Mean distance of the obtained to a value; nan where nothing is valid."""
        return float(np.abs(np.array(self.obtained) - asked).mean()) if self.obtained else float("nan")


def benchmark_steering(config: SteeringConfig, generator: Generator | None = None) -> dict[str, Any]:
    """Plain data, for JSON and for report.steering_pictures. `generator`: one that is loaded already.

    Raises PromptError for a property or values that the model cannot be asked for, ValueError for one whose values
    nothing computes.
    """
    generator = generator or Generator.load(config.model, config.device)
    (name,) = (name for name, _ in generator.steering(_asking(config, (config.values or (1.0,))[0])).lines)
    scorer = find_scorer(config.scorer) if config.scorer else _computed(name)
    results: dict[str, Any] = {
        "settings": asdict(config),
        "property": name,
        "obtained_by": config.scorer or "computed",
        "model": generator.info.get("path", ""),
        "model_hash": generator.info.get("model_hash", ""),
        "free": None,
        "fixed": [],
    }
    if config.values:
        results["free"] = _free(config, generator, scorer)
    if config.prompts:
        results["fixed"] = _fixed(config, generator, scorer)
    return results


def _base(config: SteeringConfig) -> GenerateConfig:
    return GenerateConfig(
        num=config.num,
        temperature=config.temperature,
        seed=config.seed,
        device=config.device,
        batch=config.batch,
        workers=config.workers,
    )


def _asking(config: SteeringConfig, value: float, prompt: str | None = None) -> GenerateConfig:
    return replace(_base(config), prompt=prompt, properties={config.property: value})


def _drawing(config: SteeringConfig, num: int, is_steered: bool) -> GenerateConfig:
    return replace(_base(config), num=num, guidance=config.guidance if is_steered else 1.0)


def _computed(name: str) -> Scorer:
    """The built-in scorer of a property. Raises ValueError where there is none."""
    if (scorer := computed(name)) is not None:
        return scorer
    raise ValueError(
        f"{name} is not computed from a structure: give a scorer that predicts it (--scorer module:function)"
    )


def _draw(
    prompts: Sequence[tuple[Prompt, float | None]],
    num: int,
    config: SteeringConfig,
    generator: Generator,
    scorer: Scorer,
) -> list[Drawn]:
    """`num` samples of each prompt, drawn all together; each prompt with the value asked for."""
    is_steered = any(asked is not None for _, asked in prompts)
    records = generator.stream_from([prompt for prompt, _ in prompts], _drawing(config, num, is_steered))
    return [_drawn(list(itertools.islice(records, num)), asked, scorer, config.workers) for _, asked in prompts]


def _drawn(records: list[CIFRecord], asked: float | None, scorer: Scorer, workers: int | None) -> Drawn:
    scored, _ = scorer.apply(records)
    valid = [record for record in scored if record.rejected_by is None]
    texts = [canonical_text(record) for record in valid]
    n_unique = len(set(unique_texts(texts, workers).values()))
    return Drawn(asked, len(records), n_unique, tuple(record.scores[scorer.name] for record in valid))


def _free(config: SteeringConfig, generator: Generator, scorer: Scorer) -> dict[str, Any]:
    """As many samples unasked as for all values together."""
    prompts = [(generator.prompts(_asking(config, value))[0], value) for value in config.values]
    steered = _draw(prompts, config.num, config, generator, scorer)
    (open_prompt,) = generator.prompts(_base(config))
    unasked = _draw([(open_prompt, None)] * len(prompts), config.num, config, generator, scorer)
    return {
        "values": [_plain(one) for one in steered],
        "unasked": _plain(_pooled(unasked)),
        "unasked_unique_of_each": float(np.mean([one.n_unique / max(1, one.n_valid) for one in unasked])),
        "correlation": correlation(steered),
        "validity": _share(steered, "n_valid", "n_drawn"),
        "unasked_validity": _share(unasked, "n_valid", "n_drawn"),
        "uniqueness": _share(steered, "n_unique", "n_valid"),
        "unasked_uniqueness": _share(unasked, "n_unique", "n_valid"),
    }


def _fixed(config: SteeringConfig, generator: Generator, scorer: Scorer) -> list[dict[str, Any]]:
    """Unasked as many samples as for all quantiles together."""
    prompts = [*generator.prompts(replace(_base(config), prompt=config.prompts))]
    n_unasked = config.num * len(config.quantiles)
    unasked = _draw([(prompt, None) for prompt in prompts], n_unasked, config, generator, scorer)
    asking: list[tuple[Prompt, float | None]] = []
    values_of = []
    for source, one in zip(config.prompts, unasked, strict=True):
        values = sorted({round(one.quantile(q), 2) for q in config.quantiles}) if one.obtained else []
        values_of.append(values)
        asking += [(generator.prompts(_asking(config, value, source))[0], value) for value in values]
    drawn = iter(_draw(asking, config.num, config, generator, scorer))
    return [
        _in_system(source, one, list(itertools.islice(drawn, len(values))))
        for source, one, values in zip(config.prompts, unasked, values_of, strict=True)
    ]


def _in_system(source: str, unasked: Drawn, steered: list[Drawn]) -> dict[str, Any]:
    pairs = [(one.error(one.asked), unasked.error(one.asked)) for one in steered if one.asked is not None]
    errors = np.array(pairs or [(np.nan, np.nan)])
    return {
        "prompt": source,
        "values": [_plain(one) for one in steered],
        "unasked": _plain(unasked),
        "spread": _number(float(np.std(unasked.obtained))) if unasked.obtained else None,
        "error": _number(errors[:, 0].mean()),
        "unasked_error": _number(errors[:, 1].mean()),
        "correlation": correlation(steered),
        "validity": _share(steered, "n_valid", "n_drawn"),
        "unasked_validity": _share([unasked], "n_valid", "n_drawn"),
    }


def correlation(drawn: Sequence[Drawn]) -> float | None:
    """Pearson's, of asked and obtained over all valid samples; None where one of them does not vary."""
    asked = np.array([one.asked for one in drawn for _ in one.obtained], dtype=np.float64)
    obtained = np.array([value for one in drawn for value in one.obtained], dtype=np.float64)
    if len(asked) < 2 or np.ptp(asked) == 0 or np.ptp(obtained) == 0:
        return None
    return float(np.corrcoef(asked, obtained)[0, 1])


def _pooled(drawn: Sequence[Drawn]) -> Drawn:
    obtained = tuple(value for one in drawn for value in one.obtained)
    return Drawn(None, sum(one.n_drawn for one in drawn), sum(one.n_unique for one in drawn), obtained)


def _share(drawn: Sequence[Drawn], part: str, whole: str) -> float | None:
    total = sum(getattr(one, whole) for one in drawn)
    return sum(getattr(one, part) for one in drawn) / total if total else None


def _plain(one: Drawn) -> dict[str, Any]:
    return {
        "asked": one.asked,
        "n_drawn": one.n_drawn,
        "n_valid": one.n_valid,
        "n_unique": one.n_unique,
        "median": _number(one.quantile(0.5)),
        "quartiles": [_number(one.quantile(0.25)), _number(one.quantile(0.75))],
        "error": None if one.asked is None else _number(one.error(one.asked)),
        "obtained": [round(value, 4) for value in one.obtained],
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---------------------------------------------------------------- the table


def steering_table(results: dict[str, Any]) -> str:
    """Markdown: a table of the values asked for, one of the systems, and what they come to."""
    parts = [f"{results['property']}, {results['obtained_by']}; {results['settings']['num']} samples for each value"]
    if free := results["free"]:
        rows = [_value_row(one, f"{one['asked']:g}") for one in free["values"]]
        rows.append(_value_row(free["unasked"], "unasked"))
        parts.append(_markdown(("asked", "median", "middle half", "mean error", "valid", "unique of these"), rows))
        parts.append(
            f"correlation of asked and obtained {_two(free['correlation'], 3)}; valid {_percent(free['validity'])}, "
            f"unasked {_percent(free['unasked_validity'])}; unique of these, value by value, "
            f"{_percent(free['uniqueness'])}, as many unasked {_percent(free['unasked_uniqueness'])}"
        )
    if fixed := results["fixed"]:
        rows = [
            (
                one["prompt"],
                " ".join(f"{value['asked']:.2f}" for value in one["values"]),
                " ".join(_two(value["median"]) for value in one["values"]),
                *(_two(one[name]) for name in ("error", "unasked_error", "spread", "correlation")),
                f"{_percent(one['validity'])} / {_percent(one['unasked_validity'])}",
            )
            for one in fixed
        ]
        header = ("prompt", "asked", "median", "mean error", "unasked", "spread unasked", "correlation")
        parts.append(_markdown((*header, "valid / unasked"), rows))
        means = [[one[name] for one in fixed if one[name] is not None] for name in ("error", "unasked_error", "spread")]
        if all(means):
            error, other, spread = (float(np.mean(values)) for values in means)
            parts.append(
                f"mean over {len(fixed)} prompts: error {error:.3f}, unasked to the same values {other:.3f}; "
                f"spread (standard deviation) of these {spread:.3f}"
            )
    return "\n\n".join(parts)


def _value_row(one: dict[str, Any], name: str) -> tuple[str, ...]:
    low, high = one["quartiles"]
    unique = one["n_unique"] / one["n_valid"] if one["n_valid"] else None
    valid = one["n_valid"] / one["n_drawn"] if one["n_drawn"] else None
    return (
        name,
        _two(one["median"]),
        f"{_two(low)} to {_two(high)}",
        _two(one["error"]),
        _percent(valid),
        _percent(unique),
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _two(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
