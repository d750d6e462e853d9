"""What every modality's encoder has in common: items of a batch in, a row of vectors (tokens) for each out.

A new modality is one class with `modality`, `width`, `collate` and `forward`; fusion and training ask for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Encoding(NamedTuple):
    """Of B items; a padded place counts for nothing, whatever stands there."""

    tokens: Tensor  # (B, n_tokens, width)
    mask: Tensor  # (B, n_tokens) bool: True where a token is, in each row once or more

    def mean(self) -> Tensor:
        """(B, width) over the tokens that are there"""
        weight = self.mask.to(self.tokens.dtype)
        return torch.einsum("bt,btc->bc", weight / weight.sum(dim=1, keepdim=True), self.tokens)


class Part(Protocol):
    """A modality's share of a batch."""

    def to(self, device: torch.device | str) -> Part: ...


class Encoder(nn.Module):
    modality: str  # "structure" or "text"
    reads: Literal[
        "crystal", "description", "canonical"
    ]  # what of a sample its items are: Crystal, or one of two texts
    width: int  # of its tokens

    def collate(self, items: Sequence[Any]) -> Part:
        """Items of this modality (Crystal, or text) -> what `forward` takes. ValueError: an item cannot be read."""
        raise NotImplementedError

    def forward(self, part: Any) -> Encoding:
        raise NotImplementedError
