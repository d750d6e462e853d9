from __future__ import annotations

import numpy as np
import pytest

from crystallm.refine.schedule import make_schedule


@pytest.mark.parametrize("name", ["geometric", "linear", "cosine", "sigmoid"])
def test_noise_grows_and_the_curves_belong_together(name):
    schedule = make_schedule(name, 200)
    assert schedule.sigma_ang.shape == (200,)
    assert (np.diff(schedule.sigma_ang) >= 0).all() and schedule.sigma_ang[0] >= 0.02 and schedule.sigma_ang[-1] <= 4
    np.testing.assert_allclose(schedule.alpha_bar / (1 - schedule.alpha_bar), schedule.snr)
    np.testing.assert_allclose(np.cumprod(1 - schedule.beta), schedule.alpha_bar)
    assert ((schedule.beta >= 0) & (schedule.beta < 1)).all()


def test_by_hand():
    assert make_schedule("geometric", 3, 0.1, 10).sigma_ang == pytest.approx([0.1, 1, 10])
    # cosine, t = T / 2: ᾱ = cos²(0.508 / 1.008 · π/2) / cos²(0.008 / 1.008 · π/2)
    half = make_schedule("cosine", 200).sigma_ang[99]
    assert half == pytest.approx(np.sqrt(1 / 0.4938439 - 1), rel=1e-5)
    # linear in 1,000 steps is DDPM's own
    assert make_schedule("linear", 1000, 1e-6, 1e6).beta[[0, 999]] == pytest.approx([1e-4, 0.02])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("exponential",), "no schedule 'exponential'; there are geometric, linear, cosine, sigmoid"),
        (("linear", 1), "timesteps must be at least 2, got 1"),
        (("linear", 10, 1.0, 0.5), "sigma_min_ang must be above 0 and below sigma_max_ang, got 1.0, 0.5"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)
