from __future__ import annotations

import numpy as np
import pytest

from crystallm.refine.schedule import make_schedule


@pytest.mark.parametrize("name", ["geometric", "linear", "cosine", "sigmoid"])
def test_noise_grows_and_the_curves_belong_together(name):
    schedule = make_schedule(name, 200)
    assert schedule.sigma_ang.shape == (200,)
    assert (np.diff(schedule.sigma_ang) > 0).all()  # it never stands still
    assert schedule.sigma_ang[[0, -1]] == pytest.approx([0.02, 4])
    np.testing.assert_allclose(schedule.alpha_bar / (1 - schedule.alpha_bar), schedule.snr)
    np.testing.assert_allclose(np.cumprod(1 - schedule.beta), schedule.alpha_bar)
    assert ((schedule.beta > 0) & (schedule.beta < 1)).all()


def test_by_hand():
    assert make_schedule("geometric", 3, 0.1, 10).sigma_ang == pytest.approx([0.1, 1, 10])


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_named_curves_are_the_papers(name):
    """ᾱ solved for the time by hand: it goes in equal steps, and is of the curve's own unit of time."""
    alpha_bar = make_schedule(name, 50, 0.05, 3).alpha_bar
    if name == "linear":  # 9.95 t² + 0.1 t + ln ᾱ = 0
        time = (-0.1 + np.sqrt(0.01 - 39.8 * np.log(alpha_bar))) / 19.9
    elif name == "cosine":
        time = np.arccos(np.sqrt(alpha_bar) * np.cos(0.008 / 1.008 * np.pi / 2)) * 2 / np.pi * 1.008 - 0.008
    else:
        low, high = 1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))
        time = (3 - np.log(1 / (1 / (low + (high - low) * alpha_bar) - 1))) / 6
    assert time[0] > 0 and time[-1] < 1
    np.testing.assert_allclose(np.diff(time), (time[-1] - time[0]) / 49, rtol=1e-3)


def test_linear_is_ddpms():
    """ᾱ of DDPM's 1,000 steps against our curve at the times k / 1000, between the widths 0.05 and 3 Å."""
    ddpm = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ours = make_schedule("linear", 5000, 0.05, 3)
    time = (-0.1 + np.sqrt(0.01 - 39.8 * np.log(ours.alpha_bar))) / 19.9
    inside = (ddpm < ours.alpha_bar[0]) & (ddpm > ours.alpha_bar[-1])
    found = np.interp((np.arange(1000) + 1)[inside] / 1000, time, ours.alpha_bar)
    np.testing.assert_allclose(found, ddpm[inside], atol=2e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("exponential",), "no schedule 'exponential'; there are geometric, linear, cosine, sigmoid"),
        (("linear", 1), "timesteps must be at least 2, got 1"),
        (("linear", 10, 0.02, 500), r"linear schedule has widths of 0.001 to 152 Å, got 0.02, 500"),
        (("linear", 10, 1.0, 0.5), "sigma_min_ang must be above 0 and below sigma_max_ang, got 1.0, 0.5"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)
