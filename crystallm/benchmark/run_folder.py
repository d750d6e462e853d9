"""A benchmark's folder: what was asked, what is done. A run that was stopped goes on; another run is refused.

config.json           settings that the figures depend on, model, rows; a run with others is refused
samples/0003.parquet  records of a chunk of targets; 0003.json its time, and targets whose prompt was refused
judged/0003.parquet   checks, matches and selections of the same chunk
cross/0000.parquet    matches between rows of one formula
results.json, results.md, targets.parquet

Each file is written beside its place and moved there, so a file that is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from crystallm.benchmark.judge import Judged
from crystallm.records import CIFRecord, read_records, write_records


class OtherRunError(ValueError):
    """The folder holds a run with other settings, another model or other rows."""


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """As it is when read back from JSON; nan, which JSON has not, is null."""
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class RunFolder:
    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        """`identity`, plain data, is compared with what the folder holds; OtherRunError tells the differences."""
        self.path = Path(path)
        self.config_hash = digest(identity)
        stored = self.read_json("config.json")
        if stored is None:
            if self.path.exists() and any(self.path.iterdir()):
                raise OtherRunError(
                    f"{self.path} holds other files and no config.json; wanted a new or an empty folder"
                )
            self.write_json("config.json", identity)
        elif stored != (wanted := as_json(identity)):
            old, new = _flat(stored), _flat(wanted)
            changes = [
                f"{key}: {old.get(key)!r}, now {new.get(key)!r}"
                for key in {**old, **new}
                if old.get(key) != new.get(key)
            ]
            raise OtherRunError(
                f"{self.path} holds another run; {'; '.join(changes)}. Give another folder, or its settings"
            )

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def read_json(self, name: str) -> Any:
        """None where the file is not there."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)

    def write_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        pq.write_table(pa.table(dict(columns)), part, compression="zstd")
        os.replace(part, path)

    def read_table(self, name: str) -> dict[str, list[Any]]:
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = pq.read_table(self.path / name).to_pydict()
        return columns

    # ------------------------------------------------------------ chunks

    def write_samples(self, chunk: int, records: Sequence[CIFRecord], about: dict[str, Any]) -> None:
        self.write_json(f"samples/{chunk:04d}.json", about)
        write_records(self.path / f"samples/{chunk:04d}.parquet", records)  # last: it says that the chunk is there

    def has_samples(self, chunk: int) -> bool:
        return self.has(f"samples/{chunk:04d}.parquet")

    def read_samples(self, chunk: int) -> tuple[list[CIFRecord], dict[str, Any]]:
        records = list(read_records(self.path / f"samples/{chunk:04d}.parquet"))
        return records, self.read_json(f"samples/{chunk:04d}.json")

    def has_judged(self, chunk: int) -> bool:
        return self.has(f"judged/{chunk:04d}.parquet")

    def write_judged(self, chunk: int, judged: Iterable[Judged]) -> None:
        rows = [asdict(one) for one in judged]
        self.write_table(f"judged/{chunk:04d}.parquet", {f.name: [row[f.name] for row in rows] for f in fields(Judged)})

    def read_judged(self, chunk: int) -> list[Judged]:
        columns = self.read_table(f"judged/{chunk:04d}.parquet")
        return [Judged(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
