from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crystallm.sample.logits import Draw, choose, choose_masked, pick, shape


def test_temperature_divides() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    expected = torch.softmax(logits / 0.5, dim=-1)
    torch.testing.assert_close(torch.softmax(shape(logits, Draw(temperature=0.5)), dim=-1), expected)


def test_tiny_temperature_does_not_overflow() -> None:
    shaped = shape(torch.tensor([[1.0, 300.0, -torch.inf]]), Draw(temperature=1e-6))
    assert torch.softmax(shaped, dim=-1).tolist() == [[0.0, 1.0, 0.0]]


def test_top_k_keeps_k() -> None:
    shaped = shape(torch.tensor([[0.1, 3.0, 2.0, -1.0], [5.0, 1.0, 2.0, 3.0]]), Draw(top_k=2))
    assert torch.isfinite(shaped).tolist() == [[False, True, True, False], [True, False, False, True]]


def test_top_p_keeps_the_smallest_set_that_holds_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.6, 2), (0.9, 3), (0.97, 4), (1.0, 4)):
        assert int(torch.isfinite(shape(logits, Draw(top_p=top_p))).sum()) == kept, top_p


def test_pick_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.2, 0.5, 0.0, 0.3]).log()[None]
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    assert pick(logits.expand(6, -1), uniforms).tolist() == [0, 0, 1, 1, 3, 3]


def test_pick_never_takes_what_is_not_allowed() -> None:
    logits = torch.full((1000, 7), -torch.inf)
    logits[:, 3] = -80.0
    uniforms = torch.linspace(0, 1 - 2**-53, 1000, dtype=torch.float64)
    assert set(pick(logits, uniforms).tolist()) == {3}


def test_draws_follow_the_softmax() -> None:
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=12)).float()
    n = 50_000
    drawn = choose(logits.expand(n, -1), torch.from_numpy(generator.random(n)), Draw(temperature=0.7))
    expected = torch.softmax(logits.double() / 0.7, dim=-1).numpy() * n
    chi_squared = ((np.bincount(drawn.numpy(), minlength=12) - expected) ** 2 / expected).sum()
    assert chi_squared < 31.3, "11 degrees of freedom, probability 0.001"


def test_greedy_takes_the_largest() -> None:
    assert choose(torch.tensor([[1.0, -math.inf, 2.0]]), None, Draw(temperature=0)).tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 .*greedy.* or from 1e-06 to 1e.06, got -1.0"),
        *(({"temperature": value}, "temperature") for value in (math.nan, math.inf, 1e300, 1e-50)),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "got 1.5"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draw(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [Draw(), Draw(temperature=0.5), Draw(temperature=0)])
@pytest.mark.parametrize("depth", [1.0, 60.0, 200.0])
def test_masked_choice_against_float64(draw: Draw, depth: float) -> None:
    """What the mask lets through may be exp(-200) of the softmax; then float32 has no number for its weights."""
    random = np.random.default_rng(0)
    n, K = 500, 9
    logits = random.normal(size=(n, K))
    logits[:, :3] += depth
    mask = np.ones((n, K), dtype=bool)
    mask[::2, :3] = False
    uniforms = random.random(n)
    logits_t = torch.from_numpy(logits).float()
    weights = torch.exp(logits_t - logits_t.amax(dim=-1, keepdim=True))
    uniforms_t = None if draw.is_greedy else torch.from_numpy(uniforms)
    picks, log_masses = choose_masked(logits_t, weights, torch.from_numpy(mask), uniforms_t, draw)
    allowed = np.where(mask, logits, -np.inf)
    expected = np.logaddexp.reduce(allowed, axis=1) - np.logaddexp.reduce(logits, axis=1)
    np.testing.assert_allclose(log_masses, expected, atol=1e-4)
    if draw.is_greedy:
        expected_picks = allowed.argmax(axis=1)
    else:
        probs = np.exp((allowed - allowed.max(axis=1, keepdims=True)) / draw.temperature)
        cumulative = probs.cumsum(axis=1)
        expected_picks = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(axis=1)
    assert picks.tolist() == expected_picks.tolist()
