"""The property predictor: encoders of structure and text, their fusion, and a head for each of the three branches.

Structure alone, text alone and both together are trained at once; which branch answers depends on what a sample has.
A head gives each target's value and the width of its error. Values are trained by absolute error in units of the
target's spread, widths by the likelihood of the errors that occurred (Laplace's density), which leaves values alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from crystallm.properties.encoding import Encoder, Encoding, Part
from crystallm.properties.fusion import FUSIONS, FusionName

Branch = Literal["fused", "structure", "text"]
MODALITIES: tuple[Branch, Branch] = ("structure", "text")


@dataclass(frozen=True)
class HeadConfig:
    fusion: FusionName = "gated"
    width: int = 128
    dropout: float = 0.0
    structure_weight: float = 2.0  # of its branch's loss; the fused branch counts 1
    text_weight: float = 2.0
    modality_dropout: float = 0.1  # share of the training samples whose fused branch misses one of the two, each

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {self.fusion!r}")
        if not 0 <= self.modality_dropout <= 0.5:
            raise ValueError(f"modality_dropout must be in [0, 0.5], got {self.modality_dropout}")


@dataclass(frozen=True)
class Target:
    """A property, and how its values are scaled: normalised = (value - mean) / scale."""

    name: str  # with its unit, e.g. formation_energy_ev_per_atom
    mean: float = 0.0
    scale: float = 1.0
    error_factors: dict[str, float] = field(default_factory=dict)  # by branch: multiplies widths (calibration.py)


class Prediction(NamedTuple):
    """Normalised, of one branch."""

    mean: Tensor  # (B, n_targets)
    log_width: Tensor  # (B, n_targets) log of Laplace's scale: the mean absolute error to be expected


@dataclass(frozen=True, eq=False)
class PropertyBatch:
    """B samples; a modality's part holds only those that have it, in their order."""

    parts: Mapping[str, Part]
    present: Mapping[str, Tensor]  # modality -> (B,) bool
    targets: Tensor  # (B, n_targets) in their units, nan where unknown

    def to(self, device: torch.device | str) -> PropertyBatch:
        parts = {name: part.to(device) for name, part in self.parts.items()}
        present = {name: tensor.to(device) for name, tensor in self.present.items()}
        return replace(self, parts=parts, present=present, targets=self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Loss:
    """As train.trainer.LossLike."""

    total: Tensor
    structures: int
    sums: Tensor
    counts: Tensor

    @property
    def weight(self) -> int:
        return self.structures


class PropertyPredictor(nn.Module):
    """`encoders`: one for each modality that the model knows, one or two."""

    def __init__(self, encoders: Sequence[Encoder], targets: Sequence[Target], config: HeadConfig | None = None):
        super().__init__()
        self.config = config = config or HeadConfig()
        if not targets:
            raise ValueError("a predictor needs at least one target")
        self.targets = tuple(targets)
        self.encoders = nn.ModuleDict({encoder.modality: encoder for encoder in encoders})
        if len(self.encoders) != len(encoders) or not set(self.encoders) <= set(MODALITIES) or not encoders:
            got = [encoder.modality for encoder in encoders]
            raise ValueError(f"one encoder for each of {' and '.join(MODALITIES)} at most, and one at least, got {got}")
        alone: tuple[Branch, ...] = tuple(name for name in MODALITIES if name in self.encoders)
        self.branches: tuple[Branch, ...] = alone if len(alone) == 1 else ("fused", *alone)
        width, n = config.width, len(targets)
        self.bridges = nn.ModuleDict({name: nn.Linear(e.width, width) for name, e in self.encoders.items()})  # type: ignore[arg-type]
        self.missing = nn.ParameterDict({name: torch.zeros(width) for name in self.encoders})
        self.fusion = FUSIONS[config.fusion](width) if len(encoders) > 1 else None
        self.heads = nn.ModuleDict({branch: Head(width, n, config.dropout) for branch in self.branches})
        self.loss_names = (
            "error_per_structure",  # of the first branch, in units of the targets' spread, mean over known targets
            *(f"error_{branch}" for branch in self.branches[1:]),
            *(target.name for target in targets),  # mean absolute errors of the first branch, in their units
            "width_nats",
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers whose matrices Muon trains."""
        return nn.ModuleList([block for encoder in self.encoders.values() for block in getattr(encoder, "blocks", [])])

    def encoders_by_modality(self) -> dict[str, Encoder]:
        return {name: encoder for name, encoder in self.encoders.items() if isinstance(encoder, Encoder)}

    def scaling(self) -> tuple[Tensor, Tensor]:
        """means and scales of the targets (n_targets,)"""
        device = next(self.parameters()).device
        means = torch.tensor([target.mean for target in self.targets], device=device)
        return means, torch.tensor([target.scale for target in self.targets], device=device)

    def encode(self, batch: PropertyBatch) -> dict[str, Encoding]:
        """Of the modalities that any sample has, all B samples: those without it have the token of the missing."""
        found = {}
        for name, encoder in self.encoders.items():
            if name in batch.parts:
                encoding = encoder(batch.parts[name])
                bridged = Encoding(self.bridges[name](encoding.tokens), encoding.mask)
                found[name] = self._spread(name, bridged, batch.present[name])
        return found

    def _spread(self, name: str, encoding: Encoding, present: Tensor) -> Encoding:
        """Rows of the present -> all rows, the missing token in the others"""
        if bool(present.all()):
            return encoding
        tokens = encoding.tokens.new_zeros(len(present), *encoding.tokens.shape[1:])
        tokens[present] = encoding.tokens
        mask = encoding.mask.new_zeros(len(present), encoding.mask.shape[1])
        mask[present] = encoding.mask
        return self._without(name, Encoding(tokens, mask), ~present)

    def _without(self, name: str, encoding: Encoding, absent: Tensor) -> Encoding:
        """The missing token alone in the rows `absent` (B,) bool"""
        first = torch.arange(encoding.mask.shape[1], device=absent.device) == 0
        here = absent[:, None] & first  # (B, n_tokens)
        mask = torch.where(absent[:, None], first, encoding.mask)
        tokens = torch.where(here[:, :, None], self.missing[name].to(encoding.tokens.dtype), encoding.tokens)
        return Encoding(tokens, mask)

    def forward(self, batch: PropertyBatch) -> dict[Branch, Prediction]:
        """Predictions of every branch for all B samples; a branch whose modality no sample has is left out."""
        return self.predict_from(self.encode(batch))

    def predict_from(self, encodings: Mapping[str, Encoding]) -> dict[Branch, Prediction]:
        fused = {} if self.fusion is None or not encodings else self._fused(self.fusion, encodings)
        return fused | self._alone(encodings)

    def _alone(self, encodings: Mapping[str, Encoding]) -> dict[Branch, Prediction]:
        return {name: self.heads[name](encoding.mean()) for name, encoding in encodings.items()}  # type: ignore[misc]

    def _fused(self, fusion: nn.Module, encodings: Mapping[str, Encoding]) -> dict[Branch, Prediction]:
        return {"fused": self.heads["fused"](fusion(*self._both(encodings)))}

    def _both(self, encodings: Mapping[str, Encoding]) -> list[Encoding]:
        """The two modalities in their order; one that no sample has is the missing token everywhere."""
        n = len(next(iter(encodings.values())).mask)
        both = []
        for name in self.encoders:
            if name in encodings:
                both.append(encodings[name])
            else:
                token = self.missing[name]
                mask = torch.ones(n, 1, dtype=torch.bool, device=token.device)
                both.append(Encoding(token.expand(n, 1, -1), mask))
        return both

    def loss(self, batch: PropertyBatch) -> Loss:
        encodings = self.encode(batch)
        predictions = self._alone(encodings)
        if self.fusion is not None and encodings:
            drops = self.training and self.config.modality_dropout > 0
            predictions |= self._fused(self.fusion, self._dropped(encodings, batch) if drops else encodings)
        means, scales = self.scaling()
        known = batch.targets.isfinite()  # (B, n_targets)
        wanted = torch.where(known, (batch.targets - means) / scales, 0.0)
        weights = {"fused": 1.0, "structure": self.config.structure_weight, "text": self.config.text_weight}
        weights[self.branches[0]] = 1.0
        total = wanted.new_zeros(())
        parts: list[tuple[Tensor, Tensor]] = []  # sums and counts, in the order of loss_names
        nats = wanted.new_zeros(())
        n_nats = 0
        by_target: list[tuple[Tensor, Tensor]] = []
        for branch in self.branches:
            if branch not in predictions:
                parts.append((wanted.new_zeros(()), wanted.new_zeros(())))
                by_target = by_target or [(wanted.new_zeros(()), wanted.new_zeros(()))] * len(self.targets)
                continue
            heard = known if branch == "fused" else known & batch.present[branch][:, None]
            mean, log_width = (value.float() for value in predictions[branch])
            errors = (mean - wanted).abs() * heard
            surprise = (errors.detach() * torch.exp(-log_width) + log_width) * heard
            total = total + weights[branch] * errors.sum() + surprise.sum()
            parts.append((errors.detach().sum(), heard.sum()))
            by_target = by_target or list(zip((errors.detach() * scales).sum(0), heard.sum(0), strict=True))
            if branch == self.branches[0]:
                nats, n_nats = surprise.detach().sum(), int(heard.sum())
        rows = [*parts, *by_target, (nats, torch.tensor(n_nats))]
        sums = torch.stack([row[0].float() for row in rows])
        counts = torch.stack([row[1].float().to(sums.device) for row in rows])
        return Loss(total, len(batch.targets), sums, counts)

    def _dropped(self, encodings: Mapping[str, Encoding], batch: PropertyBatch) -> dict[str, Encoding]:
        """Some samples without structure, some others without text, none without both."""
        draw = torch.rand(len(batch.targets)).to(batch.targets.device)
        share = self.config.modality_dropout
        dropped = dict(encodings)
        for place, name in enumerate(self.encoders):
            others = [batch.present[other] for other in self.encoders if other != name and other in batch.present]
            absent = (draw >= place * share) & (draw < (place + 1) * share)
            if name in encodings and others:
                dropped[name] = self._without(name, encodings[name], absent & others[0])
        return dropped


class Head(nn.Module):
    """(B, width) -> values, and widths that are learnt without moving what the vectors say of the values"""

    def __init__(self, width: int, n_targets: int, dropout: float):
        super().__init__()
        self.value = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, n_targets)
        )
        self.error = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, n_targets)
        )

    def forward(self, vector: Tensor) -> Prediction:
        return Prediction(self.value(vector), self.error(vector.detach()).clamp(-6, 4))
