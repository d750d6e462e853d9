"""Predictors of one kind, trained apart, that answer as one: their mean, and how far apart they are.

Deep ensembles (Lakshminarayanan et al. 2017, section 2.4): members differ by the seed of their training alone, and what
they disagree in is added to the error to be expected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crystallm.properties.encoding import Encoder
from crystallm.properties.predictor import Branch, Prediction, PropertyBatch, PropertyPredictor, Target


class Ensemble(nn.Module):
    """Predicts as a PropertyPredictor does. The members have the same encoders, branches and scaling of targets."""

    def __init__(self, members: Sequence[PropertyPredictor]):
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one predictor")
        self.members = nn.ModuleList(members)
        self.targets: tuple[Target, ...] = members[0].targets
        self.branches = members[0].branches

    @property
    def first(self) -> PropertyPredictor:
        found = self.members[0]
        assert isinstance(found, PropertyPredictor)
        return found

    def encoders_by_modality(self) -> dict[str, Encoder]:
        """The first member's: what one collates all can read."""
        return self.first.encoders_by_modality()

    def scaling(self) -> tuple[Tensor, Tensor]:
        """means and scales of the targets (n_targets,)"""
        return self.first.scaling()

    def forward(self, batch: PropertyBatch) -> dict[Branch, Prediction]:
        """Predictions of every branch for all B samples; a branch whose modality no sample has is left out."""
        found: list[dict[Branch, Prediction]] = [member(batch) for member in self.members]
        return {branch: mixture([one[branch] for one in found]) for branch in found[0]}


def single(model: PropertyPredictor | Ensemble, use: str) -> PropertyPredictor:
    """The one network that `use` looks into. ValueError for an ensemble."""
    if isinstance(model, Ensemble):
        raise ValueError(f"an ensemble of {len(model.members)} predictors; {use} wants one of them")
    return model


def mixture(predictions: Sequence[Prediction]) -> Prediction:
    """The mean, and the width of the Laplace density that has the variance of the mixture of all: b² = mean of b_k² +
    half of the variance of the means."""
    means = torch.stack([one.mean.float() for one in predictions])  # (K, B, n_targets)
    log_widths = torch.stack([one.log_width.float() for one in predictions])
    within = (2 * log_widths).exp().mean(dim=0)
    between = means.var(dim=0, correction=0) / 2
    return Prediction(means.mean(dim=0), (within + between).log() / 2)
