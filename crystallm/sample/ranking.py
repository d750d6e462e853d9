"""Samples in the order of a predicted property, each with the value and the error to be expected of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crystallm.properties.prediction import Predictor, score_name
from crystallm.records import CIFRecord
from crystallm.sample.steering import property_label


@dataclass(frozen=True)
class Ranking:
    """`Ranking.find("formation_energy")`, or "max:band_gap"; energies are ranked from the lowest, others from the
    highest, unless min: or max: says otherwise."""

    predictor: Predictor
    target: str
    lowest_first: bool

    @classmethod
    def find(cls, spec: str, model: str | None = None) -> Ranking:
        """ValueError for a property that the predictor does not know, FileNotFoundError without a predictor."""
        sense, _, rest = spec.partition(":")
        name = rest if sense in ("min", "max") else spec
        predictor = Predictor.load(model)
        target = predictor.target(name).name
        lowest = sense == "min" if sense in ("min", "max") else "energy" in target
        return cls(predictor, target, lowest)

    @property
    def score(self) -> str:
        """The name of the value among a record's scores"""
        return score_name(self.target)

    @property
    def label(self) -> tuple[str, str]:
        """What a table calls it, and its unit"""
        return property_label(self.target)

    def order(self, records: Sequence[CIFRecord]) -> list[CIFRecord]:
        """As many records: the valid ones of each prompt in order, the prompts as they came; then the rejected."""
        valid = [record for record in records if record.rejected_by is None]
        scored = self.predictor.score(valid)
        sign = 1 if self.lowest_first else -1
        prompts = {prompt: place for place, prompt in enumerate(dict.fromkeys(r.prompt for r in records))}
        ranked = [record for record in scored if record.rejected_by is None]
        ranked.sort(key=lambda r: (prompts[r.prompt], sign * r.scores[self.score]))
        ranked = [replace(r, provenance={**r.provenance, "ranked_by": self._provenance()}) for r in ranked]
        return [*ranked, *(r for r in scored if r.rejected_by), *(r for r in records if r.rejected_by)]

    def _provenance(self) -> dict[str, str]:
        return {"property": self.target, "predictor": self.predictor.info.get("model_hash", "")[:12]}

    def cell(self, record: CIFRecord) -> str:
        """value ± expected error"""
        value, error = record.scores.get(self.score, math.nan), record.scores.get(f"{self.score}_error", math.nan)
        return f"{value:.3f} ± {error:.3f}"
