"""Whether predicted errors are as large as the errors that occur, and the factors that make them so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crystallm.properties.ensemble import Ensemble
from crystallm.properties.prediction import Predictor
from crystallm.properties.predictor import PropertyPredictor, Target
from crystallm.properties.samples import SampleSet

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def calibrated_targets(model: PropertyPredictor | Ensemble, samples: SampleSet) -> list[Target]:
    """The model's targets with factors fitted on these (validation) samples, for each branch.

    With its factor the mean of the expected errors is that of the errors that occur. (The likeliest factor of Laplace
    widths b, the mean of |error| / b, is ruled by the few that were thought certain and are not: gaps said to be 0.) A
    target without a label here keeps 1.
    """
    targets = [replace(target, error_factors={}) for target in model.targets]
    model.targets = tuple(targets)
    plain = Predictor(model)
    labels = samples.labels(plain.targets)
    factors: list[dict[str, float]] = [{} for _ in targets]
    for branch in model.branches:
        found = plain.predict(samples, branch=branch)
        errors = np.abs(found.values - labels)
        for place, own in enumerate(factors):
            known = np.isfinite(labels[:, place])
            if known.any():
                own[branch] = float(errors[known, place].mean() / found.errors[known, place].mean())
    return [replace(target, error_factors=own) for target, own in zip(targets, factors, strict=True)]


def coverage(errors: np.ndarray, widths: np.ndarray, levels: Sequence[float] = LEVELS) -> np.ndarray:
    """(n_levels,) shares of the errors within the interval that should hold `levels` of them.

    `errors` |predicted - true| and `widths` (Laplace's b), both (n,). An interval that holds p reaches -b ln(1 - p).
    """
    reach = -np.log1p(-np.asarray(levels))
    return (errors[:, None] <= widths[:, None] * reach).mean(axis=0)
