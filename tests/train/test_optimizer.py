from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from crystallm.train.optimizer import (
    MovingAverage,
    Muon,
    OptimizerName,
    load_optimizer_tensors,
    make_optimizers,
    optimizer_tensors,
    orthogonal,
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
    (optimizer,) = make_optimizers(model, "adamw", 0.1, 0.5, (0.9, 0.95))
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
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.weights["weight"]) == pytest.approx(expected)
    average.swap()
    assert float(model.weight) == pytest.approx(expected) and float(average.weights["weight"]) == 4.0


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 6)), "head": nn.Linear(6, 2, bias=False)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adamw, muon = make_optimizers(model, "muon", 0.1, 0.0, (0.9, 0.95))
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    muon.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["blocks.0.weight"]
    step = (before["blocks.0.weight"] - model["blocks"][0].weight.detach()).double()
    values = torch.linalg.svdvals(step)  # orthogonal but for the few iterations' error: all of one size
    assert float(values.max() / values.min()) < 2.0
    adamw.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


ADAM, MUON = {"exp_avg", "exp_avg_sq", "step"}, {"momentum_buffer"}


@pytest.mark.parametrize("name, of_the_matrix", [("adamw", ADAM), ("muon", MUON)])
def test_optimizer_state_travels_by_name(name: OptimizerName, of_the_matrix: set[str]):
    def steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], n: int) -> None:
        for _ in range(n):
            model.zero_grad()
            (model(torch.ones(1, 2)) ** 2).sum().backward()
            for optimizer in optimizers:
                optimizer.step()

    torch.manual_seed(0)
    model, other = Net(), Net()
    optimizers = make_optimizers(model, name, 0.1, 0.1, (0.9, 0.95))
    steps(model, optimizers, 3)
    other.load_state_dict(model.state_dict())
    copies = make_optimizers(other, name, 0.1, 0.1, (0.9, 0.95))
    saved = optimizer_tensors(optimizers, {p: n for n, p in model.named_parameters()})
    expected = {f"{key}.blocks.0.weight" for key in of_the_matrix} | {f"{key}.blocks.0.bias" for key in ADAM}
    assert set(saved) == expected
    load_optimizer_tensors(
        copies, {p: n for n, p in other.named_parameters()}, {k: v.clone() for k, v in saved.items()}
    )
    steps(model, optimizers, 3)
    steps(other, copies, 3)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs) and math.isfinite(float(mine.detach().sum()))


def test_muon_of_many_matrices_is_torchs_of_each():
    """Wide, tall and square ones, several of a shape, over some steps; bfloat16 inside, so to its accuracy."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(6, 4), (6, 4), (4, 6), (5, 5), (6, 4)]]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, learning_rate=0.1, weight_decay=0.5)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        muon.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=5e-3, rtol=0)


def test_orthogonal_keeps_singular_vectors():
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 8)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonal(matrices).float()
    inner = left.mT @ made @ right.mT  # (3, 8, 8): diagonal, where the singular vectors are the same
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 0.05
