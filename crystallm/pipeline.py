"""Joins steps that do not know each other: samples checked while a model trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from crystallm.sample.generate import GenerateConfig, Generator

if TYPE_CHECKING:
    from torch import nn

    from tokenizer import CIFTokenizer

CHECKS_NEED = ("pymatgen", "spglib", "moyopy")


def validity_callback(
    tokenizer: CIFTokenizer, num: int, seed: int = 0
) -> Callable[[nn.Module, int], Mapping[str, float]] | None:
    """For train.trainer.Trainer: shares of `num` unprompted samples that end and that pass the default checks.

    None where the libraries that the checks need are not installed: training itself needs none of them.
    """
    if any(find_spec(name) is None for name in CHECKS_NEED):
        return None
    config = GenerateConfig(num=num, seed=seed)

    def sample_and_check(model: nn.Module, step: int) -> Mapping[str, float]:
        records = Generator(model, tokenizer).generate(config)  # type: ignore[arg-type]
        rejected_by = Counter(record.rejected_by for record in records)
        return {"samples_ended": _share_ended(rejected_by), "samples_valid": rejected_by[None] / num}

    return sample_and_check


def _share_ended(rejected_by: Counter[str | None]) -> float:
    return 1 - (rejected_by["dead_end"] + rejected_by["unfinished"]) / rejected_by.total()
