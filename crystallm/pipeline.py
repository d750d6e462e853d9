"""Joins steps that do not know each other: samples checked while a model trains, structure prediction and its score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from crystallm.sample.generate import GenerateConfig, Generator

if TYPE_CHECKING:
    from torch import nn

    from crystallm.crystal import Crystal
    from crystallm.records import CIFRecord
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


@dataclass(frozen=True)
class CSPConfig:
    path: str  # parquet or CSV with a `cif` column
    where: str | None = None  # pandas query, e.g. "split == 'val' and in_complete_block"
    limit: int | None = None  # the first rows of these
    num: int = 20  # samples for each target
    formula_only: bool = False  # do not tell the number of atoms in the given cell
    restarts: int = 20  # dead ends drawn again before a sample counts as one
    temperature: float = 1.0
    top_p: float | None = None
    seed: int = 0
    model: str | None = None
    device: str = "auto"
    targets_at_once: int = 50
    workers: int | None = None  # for checks and matching; None: one a core
    out: str | None = None  # parquet file for all samples


def benchmark_csp(config: CSPConfig) -> dict[str, Any]:
    """Predict a structure for the composition of each row and compare with the row's own.

    The prompt is the reduced formula and, unless `formula_only`, the number of atoms in the cell as the row gives it,
    an upper bound. Rows that cannot be read are counted in `unread` and count as misses.
    """
    from crystallm.checks.filter import FilterConfig, filter_records
    from crystallm.metrics.csp import Target, rms_distances, score
    from crystallm.records import write_records
    from crystallm.sample.prompts import benchmark_prompt, parse_prompt

    generator = Generator.load(config.model, config.device)
    references, unread = _read_targets(config)
    generate = GenerateConfig(
        num=config.num,
        restarts=config.restarts,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        workers=config.workers,
    )
    records: list[CIFRecord] = []
    starts = range(0, len(references), config.targets_at_once)
    for start in tqdm(starts, desc="sample", unit=f" × {config.targets_at_once} targets"):
        part = references[start : start + config.targets_at_once]
        prompts = [parse_prompt(c.reduced_formula) if config.formula_only else benchmark_prompt(c) for _, c in part]
        drawn = generator.generate_from(prompts, generate)
        for k, record in enumerate(drawn):
            name = part[k // config.num][0]
            records.append(replace(record, id=f"{name}/{k % config.num:03d}"))
    if config.out:
        write_records(config.out, records)
    by_cdvae = [
        record.rejected_by is None
        for record in filter_records(
            (replace(record, rejected_by=_not_judged(record), reason="") for record in records),
            FilterConfig("cdvae", workers=config.workers),
        )
    ]
    targets = [
        Target(name, crystal, tuple(_crystal(record) for record in records[k * config.num : (k + 1) * config.num]))
        for k, (name, crystal) in enumerate(references)
    ]
    shape = (len(references), config.num)
    rms = rms_distances(targets, config.workers)
    rms = np.concatenate([rms, np.full((len(unread), config.num), np.nan)])
    rejected_by = Counter(record.rejected_by for record in records)

    def scores(keep: Sequence[bool]) -> dict[str, Any]:
        kept = np.concatenate([np.array(keep).reshape(shape), np.zeros((len(unread), config.num), bool)])
        results = {f"n={n}": score(np.where(kept, rms, np.nan), n) for n in sorted({1, config.num})}
        return {name: vars(result) for name, result in results.items()}

    return {
        "n_targets": len(references) + len(unread),
        "unread": unread,
        "finished": _share_ended(rejected_by),
        "finished_at_first_draw": float(np.mean([_ended_at_once(record) for record in records])),
        "restarts_per_sample": float(np.mean([record.provenance["restarts"] for record in records])),
        "valid": rejected_by[None] / max(1, rejected_by.total()),
        "rejected_by": {str(name): count for name, count in rejected_by.items() if name},
        "unfiltered": scores([True] * len(records)),
        "valid_by_default_rules": scores([record.rejected_by is None for record in records]),
        "valid_by_cdvae_rules": scores(by_cdvae),
        "cdvae_valid": float(np.mean(by_cdvae)),
        **_nats([crystal for _, crystal in references], generator),
        "model_hash": generator.info.get("model_hash", ""),
    }


def _read_targets(config: CSPConfig) -> tuple[list[tuple[str, Crystal]], dict[str, str]]:
    import pandas as pd

    from crystallm.cif import CIFError, parse_cif

    path = Path(config.path)
    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    if config.where:
        table = table.query(config.where)
    table = table.head(config.limit) if config.limit else table
    if table.empty:
        raise ValueError(f"{path}: no row is left by where={config.where!r}")
    names = table.get("material_id", table.index)
    read, unread = [], {}
    for name, text in zip(names.astype(str), table["cif"], strict=True):
        try:
            read.append((name, parse_cif(text)[0]))
        except CIFError as err:
            unread[name] = str(err)
    return read, unread


def _crystal(record: CIFRecord) -> Crystal | None:
    """Of any sample that ended, valid or not."""
    from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, to_primitive
    from crystallm.symmetry import SymmetryError

    if record.rejected_by in ("dead_end", "unfinished"):
        return None
    try:
        unit = AsymmetricUnit.from_text(record.text)
        return to_primitive(unit.to_crystal(), unit.group)
    except (CanonicalError, SymmetryError):
        return None


def _ended_at_once(record: CIFRecord) -> bool:
    return record.provenance["restarts"] == 0 and record.rejected_by not in ("dead_end", "unfinished")


def _not_judged(record: CIFRecord) -> str | None:
    return record.rejected_by if record.rejected_by in ("dead_end", "unfinished") else None


def _nats(crystals: Sequence[Crystal], generator: Generator) -> dict[str, float | int]:
    """Mean negative log-likelihood of the true structures, whole and after the formula, under the grammar softmax."""
    from crystallm.asymmetric_unit import CanonicalError
    from crystallm.canonical import canonicalize

    tokenizer, model = generator.tokenizer, generator.model
    keyword = tokenizer.id("\n_crystallm_primitive_formula_units ")
    sequences = []
    for crystal in crystals:
        try:
            ids = np.array(tokenizer.encode(canonicalize(crystal).to_text()))
        except CanonicalError:
            continue
        if len(ids) <= model.config.block_size:
            sequences.append(ids)
    sequences.sort(key=len)
    whole, given = [], []
    for start in range(0, len(sequences), 64):
        part = sequences[start : start + 64]
        _, tokens = model.log_likelihood(part)
        for ids, row in zip(part, tokens.cpu().numpy(), strict=True):
            whole.append(-row.sum())
            given.append(-row[int(np.argmax(ids == keyword)) + 1 :].sum())
    return {
        "n_scored": len(whole),
        "nats_per_structure": float(np.mean(whole)),
        "nats_given_formula": float(np.mean(given)),
        "mean_tokens": float(np.mean([len(ids) for ids in sequences])),
    }
