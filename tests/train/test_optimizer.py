from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from crystallm.train.optimizer import (
    MovingAverage,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    rate_factor,
)


@pytest.mark.parametrize(
    "schedule, step, progress, expected",
    [
        ("cosine", 0, 0.0, 0.1),  # warm-up of ten steps
        ("cosine", 100, 0.5, 0.1 + 0.9 * 0.5),
        ("cosine", 100, 1.0, 0.1),
        ("wsd", 100, 0.6, 1.0),
        ("wsd", 100, 0.9, 0.1 + 0.9 * 0.5),  # half way down the last fifth
        ("wsd", 100, 1.2, 0.1),
        ("constant", 4, 0.9, 0.5),
    ],
)
def test_rate_by_hand(schedule: str, step: int, progress: float, expected: float):
    got = rate_factor(schedule, step, progress, warmup_steps=10, decay_share=0.2, final=0.1)
    assert got == pytest.approx(expected)


def test_matrices_decay_and_the_rest_does_not():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(model, 0.1, 0.5, (0.9, 0.95))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old * (1 - 0.1 * 0.5 if old.ndim == 2 else 1))


@torch.no_grad()
def test_moving_average_by_its_formula():
    model = nn.Linear(1, 1, bias=False)
    model.weight.fill_(0.0)
    average = MovingAverage(model, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0]):
        model.weight.fill_(value)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.weights["weight"]) == pytest.approx(expected)
    average.swap(model)
    assert float(model.weight) == pytest.approx(expected) and float(average.weights["weight"]) == 4.0


def test_optimizer_state_travels_by_name():
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            (model(torch.ones(1, 2)) ** 2).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, 0.1, 0.1, (0.9, 0.95))
    steps(model, optimizer, 3)
    other = nn.Linear(2, 2)
    other.load_state_dict(model.state_dict())
    copy = make_optimizer(other, 0.1, 0.1, (0.9, 0.95))
    saved = optimizer_tensors(optimizer, {p: n for n, p in model.named_parameters()})
    assert set(saved) == {f"{k}.{n}" for k in ("exp_avg", "exp_avg_sq", "step") for n in ("weight", "bias")}
    load_optimizer_tensors(copy, {p: n for n, p in other.named_parameters()}, {k: v.clone() for k, v in saved.items()})
    steps(model, optimizer, 3)
    steps(other, copy, 3)
    assert torch.equal(model.weight, other.weight) and math.isfinite(float(model.weight.detach().sum()))
