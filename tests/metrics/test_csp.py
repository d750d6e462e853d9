"""Match rates, RMSE, METRe and cRMSE against pymatgen and worked by hand; intervals against a known distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystallm.crystal import Crystal
from crystallm.interop import to_structure
from crystallm.metrics.csp import Target, best_of_references, plain_rms_distance, rms_distance, rms_distances, score


def salt(length: float = 3.4, shift: float = 0.0, metal: int = 55) -> Crystal:
    """The CsCl type, its chlorine moved along an edge by a share of it."""
    return Crystal(np.eye(3) * length, np.array([[0, 0, 0], [0.5 + shift, 0.5, 0.5]]), np.array([metal, 17]))


def test_rms_distance_is_pymatgens():
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    for shift in (0.0, 0.01, 0.05):
        expected = matcher.get_rms_dist(to_structure(salt(shift=shift)), to_structure(salt()))[0]
        assert rms_distance(salt(shift=shift), salt()) == pytest.approx(expected)
        assert plain_rms_distance(salt(shift=shift), salt()) == expected
    assert rms_distance(salt(), salt(4.0)) == pytest.approx(0, abs=1e-9)  # volumes are scaled
    for miss in (None, salt(metal=19)):
        assert math.isnan(rms_distance(miss, salt())) and math.isnan(plain_rms_distance(miss, salt()))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.multi_process)])
def test_table_and_scores(workers):
    targets = [
        Target("first", salt(), (salt(shift=0.04), salt(shift=0.02), None)),
        Target("second", salt(), (None, salt(shift=0.04))),
        Target("never", salt(), (salt(metal=19), None, None)),
    ]
    rms = rms_distances(targets, workers)
    far, near = rms[0, 0], rms[0, 1]
    np.testing.assert_allclose(rms, [[far, near, np.nan], [np.nan, far, np.nan], [np.nan] * 3])
    one, best = score(rms, n=1), score(rms, n=3)
    assert (one.n_matched, one.match_rate, one.rmse) == (1, pytest.approx(1 / 3), far)
    assert (best.n_matched, best.rmse) == (2, pytest.approx((near + far) / 2))
    assert best.crmse == pytest.approx((near + far + 0.5) / 3)  # stol for the third
    assert best.crmse_interval[0] < best.crmse < best.crmse_interval[1] <= 0.5
    filtered = score(np.where([[False, True, True]] * 3, rms, np.nan), n=1)
    assert filtered.match_rate == 0 and math.isnan(filtered.rmse) and filtered.crmse == 0.5
    assert "match rate 66.67%" in str(best)


def test_metre_by_hand():
    """Four references: A and B are polymorphs, C and D others. A's sample matches B, B's matches both, C's nothing."""
    pairs = [(0, np.nan), (1, 0.30), (0, 0.20), (1, 0.10), (2, np.nan), (3, 0.0)]  # (reference, rms) of a prediction
    references, rms = (np.array(column) for column in zip(*pairs, strict=True))
    best = best_of_references(4, references, rms)
    np.testing.assert_array_equal(best, [0.20, 0.10, np.nan, 0.0])
    metre = score(best[:, None])
    assert (metre.match_rate, metre.n_matched) == (0.75, 3)
    assert metre.crmse == pytest.approx((0.20 + 0.10 + 0.5 + 0.0) / 4) and metre.rmse == pytest.approx(0.1)
    # By rows alone A is missed, and B has only what was drawn for B.
    own = score(np.array([[np.nan], [0.10], [np.nan], [0.0]]))
    assert (own.match_rate, own.crmse) == (0.5, pytest.approx((0.5 + 0.10 + 0.5 + 0.0) / 4))
    assert np.isnan(best_of_references(2, np.array([], dtype=int), np.array([]))).all()


def test_intervals_of_a_known_distribution():
    """400 targets matched with probability 0.6: the 95 % interval of the mean is ±1.96 √(0.6 · 0.4 / 400) = ±0.048."""
    rng = np.random.default_rng(0)
    matched = np.arange(400) < 240
    rms = np.where(matched, rng.uniform(0.0, 0.2, 400), np.nan)[:, None]
    result = score(rms)
    assert result.match_rate == 0.6
    assert result.match_rate_interval == pytest.approx((0.552, 0.648), abs=0.006)
    # mean of 240 uniform values: 0.1 ± 1.96 · 0.2/√12/√240
    assert np.subtract(*result.rmse_interval[::-1]) == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(12 * 240), rel=0.1)
    assert score(rms).match_rate_interval == result.match_rate_interval  # the same seed
    assert score(rms, seed=1).match_rate_interval != result.match_rate_interval


@pytest.mark.parametrize("n", [0, 3])
def test_n_beyond_the_predictions_is_refused(n):
    with pytest.raises(ValueError, match=f"got {n}"):
        score(np.full((5, 2), np.nan), n=n)
