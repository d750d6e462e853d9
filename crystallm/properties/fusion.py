"""Two modalities into one vector, four ways by name on the same encoders.

Each takes two Encodings of the same width and gives (B, width). An item that lacks a modality has one learned token in
its place (predictor.py), so nothing here knows of missing ones.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from crystallm.model.attention import masked_attention
from crystallm.properties.encoding import Encoding

FusionName = Literal["sum", "concat", "gated", "cross_attention"]


class Sum(nn.Module):
    """The means of the tokens, normalised, added up."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, first: Encoding, second: Encoding) -> Tensor:
        return self.norms[0](first.mean()) + self.norms[1](second.mean())


class Concat(nn.Module):
    """The means of the tokens side by side, then a layer."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, first: Encoding, second: Encoding) -> Tensor:
        return self.mix(self.norm(torch.cat([first.mean(), second.mean()], dim=1)))


class Gated(nn.Module):
    """A gate for each component decides between the means of the two (Arevalo et al. 2017, arXiv 1702.01992)."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.gate = nn.Linear(2 * width, width)

    def forward(self, first: Encoding, second: Encoding) -> Tensor:
        one, other = self.norms[0](first.mean()), self.norms[1](second.mean())
        share = torch.sigmoid(self.gate(torch.cat([one, other], dim=1)))
        return share * one + (1 - share) * other


class CrossAttention(nn.Module):
    """Tokens of each attend to those of the other, then the means of both side by side."""

    def __init__(self, width: int, n_head: int = 4):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.first_looks, self.second_looks = Look(width, n_head), Look(width, n_head)
        self.mix = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width))

    def forward(self, first: Encoding, second: Encoding) -> Tensor:
        own, others = self.norms[0](first.tokens), self.norms[1](second.tokens)
        one = Encoding(first.tokens + self.first_looks(own, others, second.mask), first.mask)
        other = Encoding(second.tokens + self.second_looks(others, own, first.mask), second.mask)
        return self.mix(torch.cat([one.mean(), other.mean()], dim=1))

    def weights(self, first: Encoding, second: Encoding) -> tuple[Tensor, Tensor]:
        """Who looked at what, for explanations: (B, n_first, n_second), (B, n_second, n_first), means over heads."""
        own, others = self.norms[0](first.tokens), self.norms[1](second.tokens)
        return self.first_looks.weights(own, others, second.mask), self.second_looks.weights(others, own, first.mask)


class Look(nn.Module):
    """Attention of tokens (B, n, width) to those of another modality (B, m, width), whose mask is (B, m)."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, own: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self._heads(own, others)
        return self.out(masked_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def weights(self, own: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        q, k, _ = self._heads(own, others)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (B, H, n, m)
        return scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(dim=-1).mean(dim=1)

    def _heads(self, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, n, D), (B, H, m, D), (B, H, m, D)"""
        shape = (self.n_head, own.shape[-1] // self.n_head)
        k, v = self.key_value(others).unflatten(2, (2, *shape)).permute(2, 0, 3, 1, 4).unbind()
        return self.query(own).unflatten(2, shape).transpose(1, 2), k, v


FUSIONS: dict[str, type[nn.Module]] = {
    "sum": Sum,
    "concat": Concat,
    "gated": Gated,
    "cross_attention": CrossAttention,
}
assert set(FUSIONS) == set(get_args(FusionName))
