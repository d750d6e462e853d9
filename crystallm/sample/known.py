"""The crystals that a sample may be known as: those that its model was trained on, or others that are named.

known = known_crystals(None, generator.info)  # None: nothing tells what this model was trained on
known.find(record.text)                       # "mp-22862", or None
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

INDEX_FILE = "known.npz"  # beside an exported model
RECORDS_FILE = "records.parquet"  # of bin/prepare_data.py, beside the shards that a model is trained on


class Index(Protocol):
    criterion: str  # of a crystal that is found: "that matches"

    def __len__(self) -> int: ...

    def find(self, text: str) -> str | None:
        """The id of a known crystal that this canonical text describes too."""


@dataclass(frozen=True, eq=False)
class Known:
    index: Index
    name: str  # of these crystals
    n_left_out: int = 0  # of a corpus: without a canonical description

    def find(self, text: str) -> str | None:
        return self.index.find(text)

    @property
    def note(self) -> str:
        left_out = f" ({self.n_left_out:,} more could not be read)" if self.n_left_out else ""
        return f"among {len(self.index):,} {self.name}{left_out}, one {self.index.criterion}"


def known_crystals(path: str | Path | None, model_info: Mapping[str, Any]) -> Known | None:
    """Those at `path`: known.npz, prepared data (its train rows), or any corpus of crystals.

    Without a path those that the model was trained on: the index beside it, or its training data where it still is.
    None where there is neither. Raises FileNotFoundError, and ValueError for what holds no crystal.
    """
    if path is not None:
        prepared = Path(path) / RECORDS_FILE
        place = prepared if prepared.is_file() else Path(path)
        return _opened(str(place), f"crystals of {place}", _stamp(place))
    data = model_info.get("run", {}).get("data", {}).get("path")
    places = [Path(model_info.get("path", "")) / INDEX_FILE, *([Path(data) / RECORDS_FILE] if data else [])]
    found = next((place for place in places if place.is_file()), None)
    return _opened(str(found), "training crystals", _stamp(found)) if found else None


def _stamp(path: Path) -> int:
    if not path.exists():
        raise FileNotFoundError(
            f"known: {path} does not exist; wanted {INDEX_FILE}, prepared data, or crystals in any form that "
            "bin/prepare_data.py reads"
        )
    return path.stat().st_mtime_ns


@functools.lru_cache(2)
def _opened(path: str, name: str, _: int) -> Known:
    from crystallm.checks.fingerprints import KnownFingerprints
    from crystallm.checks.known import KnownCrystals
    from crystallm.data.readers import read_sources

    index: Index | None
    n_left_out = 0
    if path.endswith(".npz"):
        index = KnownFingerprints.open(path)
    elif (index := _train_rows(path)) is None:
        records = tqdm(read_sources([path]), desc="known", unit=" crystals", leave=False, delay=5, disable=None)
        index = crystals = KnownCrystals.from_records(records, workers=None)
        n_left_out = crystals.n_left_out
    if not len(index):
        raise ValueError(f"known: {path} holds no crystal{f' that can be read, of {n_left_out}' if n_left_out else ''}")
    return Known(index, name, n_left_out)


def _train_rows(path: str) -> Index | None:
    """Of prepared data; None where the file is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crystallm.checks.known import COLUMNS, KnownCrystals

    if not path.endswith(".parquet"):
        return None
    try:
        if not {*COLUMNS, "split"} <= set(pq.read_schema(path).names):
            return None
    except (pa.ArrowInvalid, OSError):  # what is wrong with it, the reader says
        return None
    return KnownCrystals(pq.read_table(path, columns=list(COLUMNS), filters=[("split", "=", "train")]))
