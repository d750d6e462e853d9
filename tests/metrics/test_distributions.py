"""Features and distances worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from crystallm.cif import parse_cif
from crystallm.metrics.distributions import FEATURES, features_of, wasserstein_distances


def test_features_of_rock_salt(cif_texts):
    features = features_of(parse_cif(cif_texts["NaCl"])[0])
    assert features["volume_per_atom_ang3"] == pytest.approx(5.6402**3 / 8)
    assert features["density_g_per_cm3"] == pytest.approx(4 * 58.44 / 0.602214 / 5.6402**3, rel=1e-4)  # 2.163
    assert features["n_elements"] == 2
    assert set(features) == set(FEATURES)


def test_a_shift_of_all_values_is_the_distance():
    values = np.array([1.0, 2, 5])
    generated = dict.fromkeys(FEATURES, values + 0.25)
    assert wasserstein_distances(generated, dict.fromkeys(FEATURES, values)) == pytest.approx(
        dict.fromkeys(FEATURES, 0.25)
    )


def test_nothing_has_no_distance():
    empty, some = dict.fromkeys(FEATURES, np.array([])), dict.fromkeys(FEATURES, np.ones(2))
    assert wasserstein_distances(empty, some) == dict.fromkeys(FEATURES, None) == wasserstein_distances(some, empty)
