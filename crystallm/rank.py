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

CHUNK = 2_000  # records at a time: memory stays the same for any number
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
) -> int:
    """Print and, with `out`, write a row for every record of the paths; how many there were.

    Raises FileNotFoundError, ValueError for an output that is neither .csv nor .parquet or is among the paths,
    FileExistsError for one that is there already, without `overwrite`.
    """
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise ValueError(f"{out}: predictions are written as .csv or .parquet")
    if out is not None:
        check_output(out, paths, overwrite)
    records = read_sources(paths, cif_column, id_column=id_column, properties={})
    predictor = Predictor.load(model, device)
    n_shown = n = n_rejected = 0
    tables: list[pa.Table] = []
    for chunk in _chunks(records, CHUNK):
        scored = predictor.score(chunk, workers if len(chunk) > 100 else 0)
        rows = [_row(record, predictor.targets) for record in scored]
        if n == 0:
            print("  ".join(["id", *predictor.targets]))
        for record in scored[: max(0, SHOWN - n_shown)]:
            print(_line(record, predictor.targets))
            n_shown += 1
        n += len(rows)
        n_rejected += sum(record.rejected_by is not None for record in scored)
        if out is not None:
            tables.append(pa.Table.from_pylist(rows, _schema(predictor.targets)))
    if n > n_shown:
        print(f"… and {n - n_shown:,} more{'' if out is None else f' in {out}'}")
    print(f"{n - n_rejected:,} of {n:,} predicted; value ± mean absolute error to be expected")
    if out is not None and tables:
        _write(pa.concat_tables(tables), Path(out))
        print(f"written to {out}")
    return n


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


def _line(record: CIFRecord, targets: Sequence[str]) -> str:
    if record.rejected_by is not None:
        return f"{record.id}  rejected by {record.rejected_by}: {record.reason}"
    cells = [f"{record.scores[score_name(t)]:.3f} ± {record.scores[f'{score_name(t)}_error']:.3f}" for t in targets]
    return "  ".join([record.id, *cells])


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path, compression="zstd")
