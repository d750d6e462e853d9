"""A trained predictor at work: crystals and texts in, values with the error to be expected of each out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystallm.properties.checkpoint import load_predictor
from crystallm.properties.ensemble import Ensemble
from crystallm.properties.loader import BatchMaker, cut_by_atoms
from crystallm.properties.predictor import Branch, PropertyBatch, PropertyPredictor, Target
from crystallm.properties.samples import SampleSet, Texts, make_samples
from crystallm.properties.structure import AtomsEncoder
from crystallm.records import CIFRecord
from crystallm.resources import resource_path
from crystallm.train.distribution import pick_device

_NON_NEGATIVE = re.compile(
    r"(?:(?!log|ln|delta)[a-z]+\d*_)?"  # a source, mp20_
    r"(?:band_gap|density|volume|bulk_modulus|shear_modulus|debye|thermal_conductivity)"
)


def never_negative(target: str) -> bool:
    """By its name: "density_g_per_cm3", "mp20_band_gap_ev", but not "log10_thermal_conductivity_w_per_mk"."""
    return bool(_NON_NEGATIVE.match(target))


BATCH_ATOMS = 2048


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of n samples, in the units of the targets' names."""

    targets: tuple[str, ...]
    values: np.ndarray  # (n, n_targets)
    errors: np.ndarray  # (n, n_targets): mean absolute error to be expected, calibrated on validation rows
    branches: list[str]  # (n,) which branch answered: fused, structure or text

    def of(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        place = self.targets.index(target)
        return self.values[:, place], self.errors[:, place]


class Predictor:
    """`Predictor.load(path)`, or the bundled one without a path; then `predict(samples)`."""

    def __init__(self, model: PropertyPredictor | Ensemble, info: dict[str, Any] | None = None, device: str = "cpu"):
        self.model: PropertyPredictor | Ensemble = model.to(device).eval()
        self.info, self.device = info or {}, device
        self.targets: tuple[str, ...] = tuple(target.name for target in model.targets)

    @classmethod
    def load(cls, path: str | Path | None = None, device: str = "cpu") -> Predictor:
        chosen = str(pick_device(device))
        model, _, info = load_predictor(resource_path("resources/predictor") if path is None else path, chosen)
        return cls(model, info, chosen)

    @property
    def texts(self) -> Texts:
        """What its text encoder reads"""
        reads = {encoder.reads for encoder in self.model.encoders_by_modality().values()}
        return Texts(description="description" in reads, canonical="canonical" in reads)

    def target(self, name: str) -> Target:
        """By its full name or the name without the unit. ValueError names those there are."""
        found = [t for t in self.model.targets if t.name == name or t.name.startswith(f"{name}_")]
        if len(found) != 1:
            raise ValueError(f"no property {name!r}; this predictor knows {', '.join(self.targets)}")
        return found[0]

    def predict(
        self,
        samples: SampleSet,
        without: Sequence[str] = (),
        batch_atoms: int = BATCH_ATOMS,
        branch: Branch | None = None,
    ) -> Predictions:
        """Every sample's values. `without`: modalities that are to be taken as missing.

        Where one modality is missing the branch of the other answers; `branch` forces one for all. ValueError for a
        crystal with too many atoms, or in a cell so flat that they have too many neighbours.
        """
        return self._predict(samples, without, batch_atoms, branch, None)

    @torch.no_grad()
    def _predict(
        self,
        samples: SampleSet,
        without: Sequence[str],
        batch_atoms: int,
        branch: Branch | None,
        refused: dict[int, str] | None,
    ) -> Predictions:
        """With `refused`, why samples were refused is noted there, and their values are nan."""
        encoders = {name: e for name, e in self.model.encoders_by_modality().items() if name not in without}
        if not encoders:
            raise ValueError("no structure and no text: nothing to predict from")
        n, k = len(samples), len(self.targets)
        values, errors, branches = np.full((n, k), np.nan), np.full((n, k), np.nan), [""] * n
        maker = BatchMaker(samples, encoders)
        waiting = cut_by_atoms(np.arange(n), samples.n_atoms, batch_atoms, 256)
        while waiting:
            chosen = waiting.pop()
            try:
                batch = maker.batch(chosen).to(self.device)
                predictions = self.model(batch)
            except ValueError as err:
                if refused is None:
                    raise
                if len(chosen) == 1:
                    refused[int(chosen[0])] = str(err)
                else:  # one by one, to find out which
                    waiting += np.split(chosen, len(chosen))
                continue
            answering = self._answering(batch, branch)
            for name in set(answering):
                rows = np.array([place for place, own in enumerate(answering) if own == name])
                mean, log_width = (value.double().cpu().numpy()[rows] for value in predictions[name])
                for place in rows:
                    branches[chosen[place]] = name
                values[chosen[rows]] = mean
                errors[chosen[rows]] = np.exp(log_width) * [t.error_factors.get(name, 1.0) for t in self.model.targets]
        means, scales = (value.double().cpu().numpy() for value in self.model.scaling())
        values = values * scales + means
        for column, target in enumerate(self.targets):
            if never_negative(target):
                values[:, column] = values[:, column].clip(min=0)
        return Predictions(self.targets, values, errors * scales, branches)

    def _answering(self, batch: PropertyBatch, branch: Branch | None) -> list[Branch]:
        """Which branch answers for each sample. ValueError for one that has nothing to answer from."""
        answers: list[Branch] = []
        present = {name: rows.tolist() for name, rows in batch.present.items()}
        for place in range(len(batch.targets)):
            there = [name for name, rows in present.items() if rows[place]]
            if not there:
                raise ValueError("a sample has neither structure nor text; nothing to predict from")
            usual: Branch = "fused" if len(there) == 2 else there[0]  # type: ignore[assignment]
            answers.append(branch or usual)
        return answers

    def score(self, records: Sequence[CIFRecord], workers: int | None = 0) -> list[CIFRecord]:
        """As many records as are given, with scores `predicted_NAME` and `predicted_NAME_error` of every target.

        What cannot be read as a crystal is rejected by the reason that CIFError names, what is too large by
        "too_large"; what was rejected before but can be read gets its scores.
        """
        plain = [replace(record, rejected_by=None, scores={}) for record in records]
        samples, unread = make_samples(plain, (), self.texts, workers)
        rejected = {one.place: (one.rejected_by, one.reason) for one in unread}
        places = [place for place in range(len(records)) if place not in rejected]
        refused: dict[int, str] = {}
        found = self._predict(samples, (), BATCH_ATOMS, None, refused)
        rejected |= {places[row]: ("too_large", why) for row, why in refused.items()}
        kept = [row for row in range(len(places)) if row not in refused]
        rows = iter(zip(found.values[kept].tolist(), found.errors[kept].tolist(), strict=True))
        results = []
        for place, record in enumerate(records):
            if place not in rejected:
                scores = dict(record.scores)
                for name, value, error in zip(self.targets, *next(rows), strict=True):
                    scores |= {score_name(name): value, f"{score_name(name)}_error": error}
                record = replace(record, scores=scores)
            elif record.rejected_by is None:
                rejected_by, reason = rejected[place]
                record = replace(record, rejected_by=rejected_by, reason=reason)
            results.append(record)
        return results

    @property
    def most_atoms(self) -> int:
        """In a cell that it looks at"""
        encoder = self.model.encoders_by_modality().get("structure")
        return encoder.config.max_atoms if isinstance(encoder, AtomsEncoder) else 10**9


def score_name(target: str) -> str:
    """Under which a record keeps a predicted value; its expected error has `_error` at the end."""
    return f"predicted_{target}"
