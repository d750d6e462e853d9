"""AdamW, or Muon for the matrices of the blocks; the learning rate's course; the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from crystallm.train.distribution import pick_dtype

Schedule = Literal["cosine", "wsd", "constant"]
OptimizerName = Literal["adamw", "muon"]


def make_optimizers(
    model: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """adamw: one for all. muon: one for the matrices of `model.blocks`, AdamW for the rest.

    Muon makes each update orthogonal (Jordan et al. 2024); scaled to the size of an AdamW step (Liu et al. 2025,
    arXiv 2502.16982), so that both take the same learning rate.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    hidden: list[nn.Parameter] = []
    if name == "muon":
        hidden = [p for p in model.blocks.parameters() if p.requires_grad and p.ndim == 2]  # type: ignore[union-attr]
    others = _without(parameters, hidden)
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=fused)
    ]
    if hidden:
        made.append(Muon(hidden, learning_rate, weight_decay))
    return made


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, as torch.optim.Muon does it with match_rms_adamw, for all matrices of
    one shape at a time: a GPU waits for launches, and there are as many for eight matrices as for one.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,  # Nesterov's
        n_iterations: int = 5,
    ):
        self.momentum, self.n_iterations = momentum, n_iterations
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for (n_out, n_in), parameters in shapes.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                averages = [self._average(p) for p in parameters]
                torch._foreach_lerp_(averages, gradients, 1 - self.momentum)
                updates = torch.stack(torch._foreach_lerp(gradients, averages, self.momentum))
                updates = orthogonal(updates, self.n_iterations).to(parameters[0].dtype)
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(n_out, n_in) ** 0.5  # root mean square of what AdamW would add
                torch._foreach_add_(parameters, updates.unbind(), alpha=-group["lr"] * size)

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonal(matrices: Tensor, n_iterations: int = 5) -> Tensor:
    """(n, a, b) -> (n, a, b) with the same singular vectors, and singular values of about 1 (0.7 to 1.2).

    Newton-Schulz iteration of the fifth order (Jordan et al. 2024, coefficients from there), in bfloat16 where the
    hardware multiplies it: elsewhere that takes 50 times as long as float32.
    """
    x = matrices.to(pick_dtype("auto", matrices.device))
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(n_iterations):
        gram = torch.bmm(x, x.mT)
        powers = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, powers, x, beta=3.4445)
    return x.mT if is_tall else x


def _without(parameters: Iterable[nn.Parameter], some: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    left_out = {id(p) for p in some}
    return [p for p in parameters if id(p) not in left_out]


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
        self._parameters: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), self._parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the model's weights; a second call exchanges them back."""
        for parameter, average in zip(self._parameters, self.weights.values(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def optimizer_tensors(
    optimizers: Iterable[torch.optim.Optimizer], names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """The optimizers' state as named tensors: "exp_avg.blocks.0.attn.c_attn.weight", ..."""
    return {
        f"{key}.{name}": value
        for optimizer in optimizers
        for parameter, name in names.items()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    optimizers: Iterable[torch.optim.Optimizer], names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        by_name.setdefault(name, {})[key] = tensor
    for optimizer in optimizers:
        for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
            if names[parameter] in by_name:
                # Adam's step counter stays where the fused kernels look for it: on the parameter's device.
                kept = by_name[names[parameter]]
                optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in kept.items()}


def fill_missing_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """A part that a batch did not use has a gradient of zero, the same in one process as in many."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
