"""AdamW on matrices with decay and the rest without, the learning rate's course, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "wsd", "constant"]


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=fused)


def rate_factor(
    schedule: Schedule, step: int, progress: float, warmup_steps: int, decay_share: float, final: float
) -> float:
    """What multiplies the learning rate at `step` (from 0) when `progress` in [0, 1] of the run is behind it.

    cosine: half a wave down to `final`. wsd: constant, then straight down over the last `decay_share` of the run.
    Progress may be steps done or time spent: the rate arrives at `final` when the run ends, whichever ends it.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if schedule == "cosine":
        course = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    elif schedule == "wsd":
        left = min(1.0, (1 - progress) / decay_share) if decay_share else 1.0
        course = final + (1 - final) * left
    else:
        course = 1.0
    return warmup * course


class MovingAverage:
    """Exponential moving average of a model's weights; the decay grows towards its value over the first steps."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the model's weights; a second call exchanges them back."""
        for name, parameter in model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: "exp_avg.blocks.0.attn.c_attn.weight", ..."""
    return {f"{key}.{names[p]}": value for p in names for key, value in optimizer.state[p].items()}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        by_name.setdefault(name, {})[key] = tensor
    for parameter, name in names.items():
        if name in by_name:
            # Adam's step counter stays where the fused kernels look for it: on the parameter's device.
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in by_name[name].items()}


def fill_missing_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """A part that a batch did not use has a gradient of zero, the same in one process as in many."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
