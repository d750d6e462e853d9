"""Crystal structure prediction: match rate and RMSE of n predictions for each target, with bootstrap intervals.

The protocol of the published tables: StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3); a target counts as matched
when one of its first n predictions matches; its distance is the smallest among them; RMSE is the mean over the matched.

    rms = rms_distances(targets, workers=8)          # (n_targets, n_predictions), nan where there is no match
    score(rms, n=1), score(rms, n=20)                # unfiltered
    score(np.where(valid, rms, np.nan), n=20)        # filtered: an invalid prediction is a miss

Two more, of Martirossyan et al., "All that structure matches does not glitter" (arXiv:2509.12178), defined as in the
authors' program OMatG:
METRe, match everyone to reference: all predictions made for a composition, whichever row they were made for, are
compared with every reference structure of that composition; the share of references that any of them matches.
cRMSE: the mean over *all* references of the smallest distance, stol (0.5) standing for those without a match. Fewer
and easier matches lower RMSE; they cannot lower cRMSE.

    best = best_of_references(n_references, reference_index, rms)   # of every pair that matches
    score(best[:, None])                                            # its match_rate is METRe, its crmse goes with it
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crystallm.crystal import Crystal
from crystallm.interop import to_structure
from crystallm.matching import PUBLISHED, distance_to, reduce_crystal
from crystallm.parallel import Failure, map_processes

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Target:
    id: str
    reference: Crystal
    predictions: tuple[Crystal | None, ...]  # in the order sampled; None where there is no crystal: a miss


@dataclass(frozen=True)
class MatchScore:
    n: int  # predictions looked at for each target
    n_targets: int
    n_matched: int
    match_rate: float
    match_rate_interval: tuple[float, float]
    rmse: float  # in units of (volume / n_atoms) ** (1/3); nan without a match
    rmse_interval: tuple[float, float]
    crmse: float  # over all targets, the tolerance for those without a match
    crmse_interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.match_rate_interval
        return (
            f"n={self.n}: match rate {self.match_rate:.2%} [{low:.2%}, {high:.2%}], RMSE {self.rmse:.4f} "
            f"[{self.rmse_interval[0]:.4f}, {self.rmse_interval[1]:.4f}], {self.n_matched} of {self.n_targets}"
        )


@functools.cache
def _matcher() -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**PUBLISHED._asdict())


def plain_rms_distance(predicted: Crystal | None, reference: Crystal) -> float:
    """By pymatgen's own call, for comparison; nan where they do not match."""
    if predicted is None or predicted.reduced_formula != reference.reduced_formula:
        return np.nan
    found = _matcher().get_rms_dist(to_structure(predicted), to_structure(reference))
    return np.nan if found is None else float(found[0])


def rms_distance(predicted: Crystal | None, reference: Crystal) -> float:
    """nan where they do not match. The same number as `plain_rms_distance`."""
    return np.nan if predicted is None else distance_to(predicted, reduce_crystal(reference))


def _rms_of_target(target: Target) -> list[float]:
    reference = reduce_crystal(target.reference)
    return [np.nan if crystal is None else distance_to(crystal, reference) for crystal in target.predictions]


def rms_distances(targets: Sequence[Target], workers: int | None = 0, timeout_s: float | None = 600.0) -> Floats:
    """(n_targets, most predictions of a target); nan where there is no match or no prediction.

    With workers, a target that outlasts `timeout_s` or kills its process counts as not matched.
    """
    rms = np.full((len(targets), max((len(target.predictions) for target in targets), default=0)), np.nan)
    results = map_processes(
        _rms_of_target, targets, workers, chunk_size=1, timeout_s=timeout_s if workers != 0 else None
    )
    for row, result in enumerate(results):
        if isinstance(result, Failure):
            if not result.error.startswith(("timeout", "worker killed")):
                raise RuntimeError(f"matching target {targets[row].id} failed: {result}")
        else:
            rms[row, : len(result)] = result
    return rms


def score(rms: Floats, n: int = 1, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0) -> MatchScore:
    """Of the first n predictions of each target; the intervals come from resampling targets."""
    if not len(rms) or not 1 <= n <= rms.shape[1]:
        raise ValueError(f"n must lie between 1 and the {rms.shape[1:]} predictions of {len(rms)} targets, got {n}")
    best = np.nanmin(np.where(np.isnan(rms[:, :n]), np.inf, rms[:, :n]), axis=1)
    matched = np.isfinite(best)
    distance = np.where(matched, best, 0.0)
    draws = np.random.default_rng(seed).integers(0, len(best), (n_bootstrap, len(best)))
    counts = matched[draws].sum(axis=1)
    sums = distance[draws].sum(axis=1)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(counts / len(best), tails)
    means = sums[counts > 0] / counts[counts > 0]
    rms_low, rms_high = np.quantile(means, tails) if len(means) else (np.nan, np.nan)
    corrected = np.where(matched, best, PUBLISHED.stol)
    crmse_low, crmse_high = np.quantile(corrected[draws].mean(axis=1), tails)
    return MatchScore(
        n=n,
        n_targets=len(best),
        n_matched=int(matched.sum()),
        match_rate=float(matched.mean()),
        match_rate_interval=(float(low), float(high)),
        rmse=float(distance.sum() / matched.sum()) if matched.any() else float("nan"),
        rmse_interval=(float(rms_low), float(rms_high)),
        crmse=float(corrected.mean()),
        crmse_interval=(float(crmse_low), float(crmse_high)),
    )


def best_of_references(n_references: int, references: Ints, rms: Floats) -> Floats:
    """(n_references,): the smallest RMS distance of the predictions listed for each reference; nan where none is.

    `references` and `rms`, of one length, list pairs of a reference and a prediction of its composition; a nan is a
    pair that does not match. METRe and its cRMSE are the `score` of the result.
    """
    best = np.full(n_references, np.inf)
    np.minimum.at(best, references, np.where(np.isnan(rms), np.inf, rms))
    return np.where(np.isfinite(best), best, np.nan)
