"""Predictions for files of crystals, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from crystallm.data.readers import read_sources
from crystallm.output import check_output
from crystallm.properties.prediction import Predictor, score_name
from crystallm.records import CIFRecord
from crystallm.rejections import Rejections
from crystallm.text_table import text_table

CHUNK = 2_000  # records at a time
SHOWN = 20


def predict_paths(
    paths: Sequence[str | Path],
    model: str | None = None,
    out: str | Path | None = None,
    cif_column: str = "cif",
    id_column: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Print and, with `out`, write a row for every record of the paths; how many were predicted, and how many read.

    Raises FileNotFoundError, ValueError for an output that is neither .csv nor .parquet or is among the paths,
    FileExistsError for one that is there already, without `overwrite`.
    """
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise ValueError(f"{out}: predictions are written as .csv or .parquet")
    if out is not None:
        check_output(out, paths, overwrite)
    records = read_sources(paths, cif_column, id_column=id_column, properties={})
    predictor = Predictor.load(model, device)
    n, n_predicted, rejections = 0, 0, Rejections()
    tables: list[pa.Table] = []
    for chunk in _chunks(records, CHUNK):
        scored = predictor.score(chunk, workers if len(chunk) > 100 else 0)
        if n == 0:
            print(prediction_table(scored[:SHOWN], predictor.targets))
        n += len(scored)
        for record in scored:
            if score_name(predictor.targets[0]) in record.scores:  # also what the checks had rejected before
                n_predicted += 1
            elif record.rejected_by is not None:
                rejections.add(record.id, record.rejected_by, record.reason)
        if out is not None:
            rows = [_row(record, predictor.targets) for record in scored]
            tables.append(pa.Table.from_pylist(rows, _schema(predictor.targets)))
    if n > SHOWN:
        print(f"… and {n - SHOWN:,} more{'' if out is None else f' in {out}'}")
    print(f"{n_predicted:,} of {n:,} predicted; value ± mean absolute error to be expected")
    print("".join(f"{line}\n" for line in rejections.lines()), end="")
    if out is not None and tables:
        _write(pa.concat_tables(tables), Path(out))
        print(f"written to {out}")
    return n_predicted, n


def _chunks(records: Iterable[CIFRecord], size: int) -> Iterator[list[CIFRecord]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _schema(targets: Sequence[str]) -> pa.Schema:
    numbers = [(name, pa.float64()) for target in targets for name in (target, f"{target}_error")]
    return pa.schema([("id", pa.string()), *numbers, ("rejected_by", pa.string()), ("reason", pa.string())])


def _row(record: CIFRecord, targets: Sequence[str]) -> dict[str, object]:
    row: dict[str, object] = {"id": record.id, "rejected_by": record.rejected_by, "reason": record.reason}
    for target in targets:
        row[target] = record.scores.get(score_name(target))
        row[f"{target}_error"] = record.scores.get(f"{score_name(target)}_error")
    return row


def prediction_table(records: Sequence[CIFRecord], targets: Sequence[str]) -> str:
    """A line for each record; a last column names what rejected some, if any."""
    header, rows = ["id", *targets], [[record.id, *(_cell(record, target) for target in targets)] for record in records]
    if any(record.rejected_by is not None for record in records):
        header.append("rejected by")
        rows = [[*row, record.rejected_by or ""] for row, record in zip(rows, records, strict=True)]
    return text_table(header, rows)


def _cell(record: CIFRecord, target: str) -> str:
    value, error = (record.scores.get(name) for name in (score_name(target), f"{score_name(target)}_error"))
    return "" if value is None else f"{value:8.3f} ± {error:.3f}"


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path, compression="zstd")
