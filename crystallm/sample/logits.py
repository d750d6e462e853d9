"""From logits to tokens: temperature, top-k, top-p, and the draw itself, whole batches at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """How a token is taken from the softmax over what is allowed."""

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int | None = None  # among the k most likely
    top_p: float | None = None  # among the most likely that hold this share of the probability

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
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
    weights = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    # u * total may round up to the total itself; the last token with any weight is meant then.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())[:, 0]
    return torch.minimum(chosen, last)


def choose(logits: Tensor, uniforms: Tensor | None, draw: Draw) -> Tensor:
    """(n, K) logits, -inf where not allowed -> (n,) indices"""
    if draw.is_greedy:
        return logits.argmax(dim=-1)
    assert uniforms is not None
    return pick(shape(logits, draw), uniforms)
