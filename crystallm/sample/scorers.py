"""What a search is led by: any function of records that gives a number for each.

find_scorer("min:density")            # built in
find_scorer("formation_energy")       # a property of the predictor
find_scorer("denoising_error")        # of the refiner: low for a crystal as it knows them
find_scorer("min:energies:per_atom")  # per_atom(records) -> list of floats, in a module energies that can be imported
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord
from crystallm.sample.selection import DENOISING, SELECTIONS

Function = Callable[[list[CIFRecord]], Sequence[float]]


@dataclass(frozen=True)
class Scorer:
    """`function` is called with valid records only, as many at a time as the search draws together."""

    name: str  # of the score in a record
    function: Function
    higher_is_better: bool = True
    model_hash: str | None = None  # of the predictor behind it, if there is one

    @property
    def selection(self) -> str:
        """For selection.select."""
        return self.name if self.higher_is_better else f"min:{self.name}"

    @classmethod
    def of_selection(cls, by: str, device: str = "cpu") -> Scorer | None:
        """What `selection.select(records, by)` wants the records to be scored by; None: nothing."""
        needed = SELECTIONS[by].scorer if by in SELECTIONS else None
        return None if needed is None else find_scorer(needed, device=device)

    def apply(self, records: Sequence[CIFRecord]) -> tuple[list[CIFRecord], list[float | None]]:
        """The records with their score, and values of which the higher are better: None for the invalid.

        What has a score that is not finite is rejected by "score".
        """
        valid = [record for record in records if record.rejected_by is None]
        scores = [float(score) for score in self.function(valid)] if valid else []
        if len(scores) != len(valid):
            raise ValueError(f"the scorer {self.name} gave {len(scores)} scores for {len(valid)} records")
        given = iter(scores)
        scored: list[CIFRecord] = []
        values: list[float | None] = []
        for record in records:
            value = None
            if record.rejected_by is None:
                score = next(given)
                if math.isfinite(score):
                    value = score if self.higher_is_better else -score
                    record = replace(record, scores=record.scores | {self.name: score})
                else:
                    record = replace(record, rejected_by="score", reason=f"{self.name} is {score}")
            scored.append(record)
            values.append(value)
        return scored, values


def _crystal(record: CIFRecord) -> Crystal:
    return record.crystal or parse_cif(record.cif)[0]


def _density(records: Sequence[CIFRecord]) -> list[float]:
    return [_crystal(record).density_g_per_cm3 for record in records]


def _volume_per_atom(records: Sequence[CIFRecord]) -> list[float]:
    return [_crystal(record).volume_ang3 / _crystal(record).n_atoms for record in records]


def _log_likelihood(records: Sequence[CIFRecord]) -> list[float]:
    return [record.scores["log_likelihood_nats"] for record in records]


SCORERS = {
    "likelihood": Scorer("log_likelihood_nats", _log_likelihood),
    "density": Scorer("density_g_per_cm3", _density),
    "volume_per_atom": Scorer("volume_per_atom_ang3", _volume_per_atom, higher_is_better=False),
}


def computed(name: str) -> Scorer | None:
    """The built-in scorer of a property by its full name: "density_g_per_cm3"; None where nothing computes it."""
    return next((scorer for scorer in SCORERS.values() if scorer.name == name), None)


def find_scorer(spec: str, predictor: str | None = None, device: str = "cpu") -> Scorer:
    """By name, or `module:function`; "min:" or "max:" before it says whether the lowest or the highest is best.

    "denoising_error" is the bundled refiner's, on `device`; the lowest is best. Any other name is a property of the
    predictor, a checkpoint, or the bundled one; the lowest energy is best. A function of one's own is maximised unless
    it says otherwise. Raises ValueError for what is not there.
    """
    sense, _, rest = spec.partition(":")
    name = rest if sense in ("min", "max") else spec
    if name in SCORERS:
        scorer = SCORERS[name]
    elif name == DENOISING:
        scorer = denoising_scorer(device)
    elif ":" in name:
        scorer = Scorer(name.partition(":")[2], _imported(name))
    else:
        scorer = property_scorer(name, predictor)
    return scorer if sense not in ("min", "max") else replace(scorer, higher_is_better=sense == "max")


def property_scorer(name: str, predictor: str | None = None) -> Scorer:
    """Predicted values of a property. ValueError for one that the predictor does not know."""
    from crystallm.properties.prediction import Predictor, score_name  # describes crystals, which drawing them does not

    model = Predictor.load(predictor)
    known = {target.name for target in model.model.targets}
    try:
        target = model.target(name).name
    except ValueError:
        others = ", ".join([*SCORERS, DENOISING, *sorted(known)])
        raise ValueError(f"no scorer {name!r}; there are {others}, and module:function") from None

    def values(records: list[CIFRecord]) -> list[float]:
        scored = model.score(records)
        return [record.scores.get(score_name(target), math.nan) for record in scored]

    return Scorer(score_name(target), values, "energy" not in target, model.info.get("model_hash"))


def denoising_scorer(device: str = "cpu") -> Scorer:
    """How badly the bundled refiner tells which noise was added to a crystal (`denoising_errors`)."""
    from crystallm.refine.records import unit_of
    from crystallm.sample.refined import load

    model, info = load(device=device)

    def errors(records: list[CIFRecord]) -> list[float]:
        units = [unit_of(record) for record in records]
        known = [unit.crystal for unit in units if unit is not None]
        found = iter(model.denoising_errors(known) if known else ())
        return [math.nan if unit is None else float(next(found)) for unit in units]

    return Scorer(DENOISING, errors, higher_is_better=False, model_hash=info.get("model_hash"))


def _imported(spec: str) -> Function:
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as err:
        raise ValueError(f"scorer {spec!r}: {err}; wanted module:function") from err
    if not callable(function):
        raise ValueError(f"scorer {spec!r} is {type(function).__name__}; wanted a function of a list of records")
    return function
