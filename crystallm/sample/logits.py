"""From logits to tokens: temperature, top-k, top-p, and the draw itself, whole batches at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Of exp(logit - the largest) over what a mask lets through: below it float32 begins to run out of small numbers.
SMALLEST_SUM = 1e-25
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6  # beyond them it is greedy or uniform, and float32 overflows


@dataclass(frozen=True)
class Draw:
    """How a token is taken from the softmax over what is allowed."""

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int | None = None  # among the k most likely
    top_p: float | None = None  # among the most likely that hold this share of the probability
    # Of jobs with a condition: logits = (1 - guidance) * those without it + guidance * those with it, which is
    # classifier-free guidance (arXiv 2207.12598, equation 6, guidance = 1 + w). Above 1 it is followed more closely.
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature <= HIGHEST_TEMPERATURE:
            bounds = f"from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}"
            raise ValueError(f"temperature must be 0 (greedy) or {bounds}, got {self.temperature}")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be 0 or above and finite, got {self.guidance}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def shape(logits: Tensor, draw: Draw) -> Tensor:
    """(n, K) -> (n, K): divided by the temperature, -inf where top-k or top-p leave a token out; ties stay together."""
    if draw.temperature != 1:
        # The largest becomes 0 first: a tiny temperature must not overflow.
        logits = (logits - logits.max(dim=-1, keepdim=True).values) / draw.temperature
    if draw.top_k is not None and draw.top_k < logits.shape[-1]:
        least = logits.topk(draw.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if draw.top_p is not None and draw.top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values
        probs = torch.softmax(ordered.double(), dim=-1)
        before = probs.cumsum(dim=-1) - probs  # probability of what is more likely
        least = ordered.masked_fill(before >= draw.top_p, torch.inf).min(dim=-1, keepdim=True).values
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """(n, K) logits, (n,) float64 in [0, 1) -> (n,) indices, by the inverse of the cumulative distribution."""
    return pick_weighted(torch.exp(logits - logits.amax(dim=-1, keepdim=True)), uniforms)[0]


def pick_weighted(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(n, K) weights, (n,) float64 in [0, 1) -> (n,) indices, and (n,) float64 sums of the weights"""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    # u * total may round up to the total itself; the last token with any weight is meant then.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(chosen, last)[:, 0], total[:, 0]


def choose(logits: Tensor, uniforms: Tensor | None, draw: Draw) -> Tensor:
    """(n, K) logits, -inf where not allowed -> (n,) indices"""
    if draw.is_greedy:
        return logits.argmax(dim=-1)
    assert uniforms is not None
    return pick(shape(logits, draw), uniforms)


def choose_masked(
    logits: Tensor, weights: Tensor, mask: Tensor | None, uniforms: Tensor | None, draw: Draw
) -> tuple[Tensor, Tensor]:
    """A token of each row (n,), and the log of the share of its softmax that the mask lets through (n,).

    `logits` (n, K); `weights` (n, K): exp(logits - the largest of the row), which is used up; `mask` (n, K) bool, None:
    everything is allowed.
    """
    if mask is None:
        # The weights are what a draw at temperature 1 needs.
        picks = pick_weighted(weights, uniforms)[0] if draw == Draw() and uniforms is not None else None
        return choose(logits, uniforms, draw) if picks is None else picks, torch.zeros_like(logits[:, 0])
    log_sums = weights.sum(dim=-1).log()
    if draw == Draw() and uniforms is not None and logits.device.type == "cpu":
        np.multiply(weights.numpy(), mask.numpy(), out=weights.numpy())  # takes a fifth of masked_fill_'s time
        picks, allowed_sums = pick_weighted(weights, uniforms)
        if float(allowed_sums.min()) > SMALLEST_SUM:
            return picks, allowed_sums.log() - log_sums
    allowed = logits.masked_fill(~mask, -torch.inf)
    log_masses = allowed.logsumexp(dim=-1) - logits.amax(dim=-1) - log_sums
    return choose(allowed, uniforms, draw), log_masses
