"""How likely a model finds crystals that exist already: log-likelihood and perplexity of CIFs.

    scores = score_records(records, Generator.load())      # one for each record, in their order
    scores = score_files(ScoreConfig(("my_cifs/",)))

A CIF is read, described canonically and scored under the grammar softmax, without crystallographic masks, from the
first token after `data_` (the whole structure) and from the first after the formula. Token by token, forced ones
count with probability 1, as in the scores of samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError
from crystallm.canonical import canonicalize
from crystallm.cif import CIFError, parse_cif
from crystallm.data.readers import read_sources
from crystallm.parallel import Failure, map_processes
from crystallm.records import CIFRecord
from crystallm.rejections import Rejections
from crystallm.sample.generate import Generator
from tokenizer import GrammarError

if TYPE_CHECKING:
    from pandas import DataFrame

RECORDS_AT_ONCE = 8192  # read, sorted by length and scored
TOKENS_AT_ONCE = 16_384  # in a batch, padding among them


@dataclass(frozen=True)
class ScoreConfig:
    paths: tuple[str, ...]  # folders, CIFs, tables, archives
    model: str | None = None  # checkpoint; None: the bundled one
    device: str = "auto"
    given_formula: bool = False  # perplexity and rank of what follows the formula
    cif_column: str = "cif"  # of tables
    workers: int | None = 0  # processes that read CIFs; None: one a core
    limit: int | None = None  # the first records


@dataclass(frozen=True)
class Score:
    """One record's. Without a score, `rejected_by` and `reason` say why, and numbers are nan."""

    id: str
    formula: str = ""
    space_group_number: int = 0
    formula_units: int = 0  # in the primitive cell
    n_tokens: int = 0  # after `data_`
    log_likelihood_nats: float = math.nan
    log_likelihood_given_formula_nats: float = math.nan
    log_likelihood_per_token: float = math.nan  # of the whole, or after the formula if that is given
    perplexity: float = math.nan  # exp(-log_likelihood_per_token)
    rank: int = 0  # 1: the least perplexity; 0: without a score
    rejected_by: str = ""
    reason: str = ""


def score_files(config: ScoreConfig) -> list[Score]:
    """One score for each record of the paths, in the order read."""
    generator = Generator.load(config.model, config.device)
    records = itertools.islice(read_sources(config.paths, config.cif_column), config.limit)
    return score_records(records, generator, config.given_formula, config.workers)


def score_records(
    records: Iterable[CIFRecord], generator: Generator, given_formula: bool = False, workers: int | None = 0
) -> list[Score]:
    """Nothing is lost: what has no score says why. ValueError for a model that writes another text than ours."""
    if generator.tokenizer.vocabulary.kind != "lexemes":
        raise ValueError(f"scores need a model of canonical text, got one of {generator.tokenizer.name}")
    scores = list(_scores(records, generator, given_formula, workers))
    order = sorted((k for k, one in enumerate(scores) if not one.rejected_by), key=lambda k: scores[k].perplexity)
    for rank, k in enumerate(order, 1):
        scores[k] = replace(scores[k], rank=rank)
    return scores


def _scores(
    records: Iterable[CIFRecord], generator: Generator, given_formula: bool, workers: int | None
) -> Iterator[Score]:
    kept, sent = itertools.tee(records)
    described = (
        Score(record.id, rejected_by="error", reason=str(result)) if isinstance(result, Failure) else result
        for record, result in zip(kept, map_processes(_describe, sent, workers), strict=True)
    )
    while part := list(itertools.islice(described, RECORDS_AT_ONCE)):
        yield from _score_part(part, generator, given_formula)


def _describe(record: CIFRecord) -> tuple[str, str] | Score:
    """The record's id and canonical text, or why there is none."""
    if record.rejected_by is not None:
        return Score(record.id, rejected_by=record.rejected_by, reason=record.reason)
    try:
        crystal, _ = parse_cif(record.cif or record.text)
        return record.id, canonicalize(crystal).to_text()
    except (CIFError, CanonicalError) as err:
        return Score(record.id, rejected_by=err.reason, reason=err.message)


def _score_part(part: Sequence[tuple[str, str] | Score], generator: Generator, given_formula: bool) -> list[Score]:
    scores: list[Score] = []
    sequences: dict[int, np.ndarray] = {}  # place -> ids
    for place, one in enumerate(part):
        if isinstance(one, tuple):
            one, sequences[place] = _encode(*one, generator)
            if one.rejected_by:
                del sequences[place]
        scores.append(one)
    keyword = generator.tokenizer.id("\n_crystallm_primitive_formula_units ")
    for places in _batches(sequences):
        ids = [sequences[place] for place in places]
        _, per_token = generator.model.log_likelihood(ids)  # (B, T)
        for place, tokens, row in zip(places, ids, per_token.double().cpu().numpy(), strict=True):
            after_formula = int(np.argmax(tokens == keyword)) + 1
            whole, given = float(row.sum()), float(row[after_formula:].sum())
            mean = given / (len(tokens) - after_formula) if given_formula else whole / (len(tokens) - 1)
            scores[place] = replace(
                scores[place],
                log_likelihood_nats=whole,
                log_likelihood_given_formula_nats=given,
                log_likelihood_per_token=mean,
                perplexity=math.exp(-mean),
            )
    return scores


def _encode(record_id: str, text: str, generator: Generator) -> tuple[Score, np.ndarray]:
    unit, ids = AsymmetricUnit.from_text(text), np.array(generator.tokenizer.encode(text))
    score = Score(record_id, unit.reduced_formula, unit.space_group_number, unit.formula_units, len(ids) - 1)
    try:
        generator.rules.grammar.states(ids)
    except GrammarError as err:
        return replace(score, rejected_by="not_representable", reason=str(err)), ids
    if len(ids) > (block_size := generator.model.config.block_size):
        reason = f"{len(ids)} tokens, the model reads at most {block_size}"
        return replace(score, rejected_by="too_long", reason=reason), ids
    return score, ids


def _batches(sequences: dict[int, np.ndarray]) -> Iterator[list[int]]:
    """Places, by length: neighbours need little padding."""
    batch: list[int] = []
    for place in sorted(sequences, key=lambda place: len(sequences[place])):
        if batch and (len(batch) + 1) * len(sequences[place]) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


# ---------------------------------------------------------------- for people


def score_table(scores: Sequence[Score], limit: int = 20) -> str:
    """The `limit` best by rank (0: no table), then how many were scored, their means, and why others were not."""
    ranked = sorted((one for one in scores if one.rank), key=lambda one: one.rank)
    head = ("rank", "id", "formula", "group", "tokens", "nats", "after formula", "per token", "perplexity")
    rows = [head, *(_row(one) for one in ranked[:limit])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows if limit else ():
        padded = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(w) if i in (1, 2) else cell.rjust(w) for i, (cell, w) in padded]
        lines.append("  ".join(cells))
    if limit and len(ranked) > limit:
        lines.append(f"… and {len(ranked) - limit} more")
    lines.append(f"scored {len(ranked)} of {len(scores)}")
    if ranked:
        nats = -np.mean([one.log_likelihood_nats for one in ranked])
        given = -np.mean([one.log_likelihood_given_formula_nats for one in ranked])
        lines[-1] += f"; mean nats per structure {nats:.1f}, after the formula {given:.1f}"
    rejections = Rejections()
    for one in scores:
        if one.rejected_by:
            rejections.add(one.id, one.rejected_by, one.reason)
    return "\n".join([*lines, *rejections.lines()])


def _row(one: Score) -> tuple[str, ...]:
    return (
        str(one.rank),
        one.id,
        one.formula,
        str(one.space_group_number),
        str(one.n_tokens),
        f"{-one.log_likelihood_nats:.1f}",
        f"{-one.log_likelihood_given_formula_nats:.1f}",
        f"{-one.log_likelihood_per_token:.3f}",
        f"{one.perplexity:.3f}",
    )


def to_frame(scores: Sequence[Score]) -> DataFrame:
    """A row each; what is not known is missing."""
    import pandas as pd

    table = pd.DataFrame({field.name: [getattr(one, field.name) for one in scores] for field in fields(Score)})
    counts = table[[field.name for field in fields(Score) if field.type == "int"]].astype("Int64")
    table[counts.columns] = counts.mask(counts == 0)
    return table


def write_scores(path: str | Path, scores: Sequence[Score]) -> None:
    """To .csv or .parquet. ValueError for another ending."""
    path, table = Path(path), to_frame(scores)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: wanted .csv or .parquet, got {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
