"""Two modalities into one vector, four ways by name on the same encoders.

Each takes two Encodings of the same width and gives (B, width). An item that lacks a modality has one learned token in
its place (predictor.py), so nothing here knows of missing ones.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

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
    """Tokens of each attend to those of the other, then the means of both side by side.

    `weights` of `attend` are what explanations show: which words an atom looks at, which atoms a word.
    """

    def __init__(self, width: int, n_head: int = 4):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.ModuleList(
            [
                nn.MultiheadAttention(width, n_head, batch_first=True),
                nn.MultiheadAttention(width, n_head, batch_first=True),
            ]
        )
        self.mix = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width))

    def forward(self, first: Encoding, second: Encoding) -> Tensor:
        one, _ = self.attend(0, first, second)
        other, _ = self.attend(1, second, first)
        return self.mix(torch.cat([one.mean(), other.mean()], dim=1))

    def attend(self, direction: int, own: Encoding, others: Encoding, weights: bool = False) -> tuple[Encoding, Tensor]:
        """Tokens of `own` that looked at `others`, and the weights (B, n_own, n_others), empty unless asked for."""
        queries, keys = self.norms[direction](own.tokens), self.norms[1 - direction](others.tokens)
        found, shares = self.attention[direction](
            queries, keys, keys, key_padding_mask=~others.mask, need_weights=weights
        )
        tokens = own.tokens + found
        return Encoding(tokens, own.mask), tokens.new_zeros(0) if shares is None else shares


FUSIONS: dict[str, type[nn.Module]] = {
    "sum": Sum,
    "concat": Concat,
    "gated": Gated,
    "cross_attention": CrossAttention,
}
assert set(FUSIONS) == set(get_args(FusionName))
