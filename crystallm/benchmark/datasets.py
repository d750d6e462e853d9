"""The structure prediction benchmarks: names → files, splits → rows, rows → targets, each row accounted for.

val, test               as the source gives them; of MP-20, where a table marks them, the rows `in_complete_block`: an
                        unbroken run of the official file, whose order is random
val_tune, val_report    halves of val by reduced formula: settings are tuned on one, figures reported on the other
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crystallm.cif import CIFError, parse_cif
from crystallm.crystal import Crystal
from crystallm.data.split import split_of
from crystallm.parallel import Failure, map_processes

if TYPE_CHECKING:
    import pandas as pd

DATASETS = {"perov5": "perov_5", "carbon24": "carbon_24", "mp20": "mp_20", "mpts52": "mpts_52"}  # ours: CDVAE's
SPLITS = ("train", "val", "test", "val_tune", "val_report")
HALVES_SEED = 52


class DatasetError(ValueError):
    """A data set, split or query that names no rows."""


@dataclass(frozen=True, eq=False)
class Reference:
    id: str
    cif: str
    crystal: Crystal | None  # None where the row cannot be read: it counts as a miss
    reason: str = ""  # then

    @property
    def formula(self) -> str:
        return "" if self.crystal is None else self.crystal.reduced_formula


@dataclass(frozen=True)
class Selection:
    """Which rows of which file these are, in words and numbers."""

    file: str
    rows: str
    n_rows: int
    n_other_half: int | None = None  # of val_tune or val_report


def load_references(
    dataset: str,
    split: str | None = None,
    data: str | None = None,
    where: str | None = None,
    limit: int | None = None,
    workers: int | None = 0,
) -> tuple[list[Reference], Selection]:
    """`dataset` is a name of DATASETS, looked for in the folder `data`, or a parquet or CSV file with a column `cif`.

    Raises DatasetError or FileNotFoundError with what was looked for.
    """
    if split is not None and split not in SPLITS:
        raise DatasetError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1, got {limit}")
    base, _, half = (split or "").partition("_")
    path = find_file(dataset, base, data) if dataset in DATASETS else Path(dataset)
    if not path.is_file():
        raise FileNotFoundError(f"{dataset}: no such file, and none of the sets {', '.join(DATASETS)}")
    table, rows = _read_table(path, base, is_named=dataset in DATASETS)
    if where:
        table, rows = table.query(where), [*rows, where]
    if table.empty:
        raise DatasetError(f"{path}: no row is left by {' and '.join(rows) or 'anything'}")
    names = table["material_id"] if "material_id" in table else table.get("id", table.index.to_series())
    pairs = list(zip(names.astype(str), table["cif"], strict=True))
    if not half:
        pairs = pairs[:limit]
    read = map_processes(read_reference, pairs, workers, chunk_size=64, timeout_s=None if workers == 0 else 120.0)
    references = [
        Reference(*pair, None, f"error: {one}") if isinstance(one, Failure) else one
        for pair, one in zip(pairs, read, strict=True)
    ]
    n_other = None
    if half:
        asked = [one for one in references if half_of(one) == half]
        other = [one for one in references if half_of(one) != half]
        shared = {one.formula for one in asked if one.crystal} & {one.formula for one in other if one.crystal}
        assert not shared, f"formulas in both halves: {sorted(shared)[:5]}"
        n_other, references = len(other), asked[:limit]
        rows.append(f"half {half!r} by formula, seed {HALVES_SEED}")
    if limit:
        rows.append(f"the first {limit}")
    return references, Selection(path.name, ", ".join(rows) or "all", len(references), n_other)


def find_file(name: str, split: str, data: str | None) -> Path:
    """The file of a named set in the folder `data`: as bin/download_data.py writes it, or as CDVAE's folders lie."""
    if split == "":
        raise DatasetError(f"{name} needs a split: {', '.join(SPLITS)}")
    if data is None:
        raise DatasetError(f"where is {name}? Give the folder of the benchmark sets, --data or CRYSTALLM_DATA")
    published = DATASETS[name]
    candidates = (
        f"{name}.parquet",
        f"{name}_{split}.parquet",
        f"{published}.parquet",
        f"{published}_{split}.csv",
        f"{published}/{split}.csv",
    )
    for candidate in candidates:
        if (path := Path(data) / candidate).is_file():
            return path
    raise FileNotFoundError(
        f"{data}: none of {', '.join(candidates)}; bin/download_data.py cdvae writes perov_5, carbon_24 and mp_20"
    )


def _read_table(path: Path, split: str, is_named: bool) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the split, and what was asked of them."""
    import pandas as pd

    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    if "cif" not in table:
        raise DatasetError(f"{path}: no column 'cif'; it has {', '.join(map(str, table.columns))}")
    rows = []
    if split:
        rows.append(split)
        if "split" in table:
            table = table[table["split"] == split]
        elif split not in path.stem:
            raise DatasetError(f"{path}: no column 'split', and its name is not that of split {split!r}")
    if is_named and "in_complete_block" in table:
        table = table[table["in_complete_block"].astype(bool)]
        rows.append("in_complete_block")
    return table, rows


def read_reference(pair: tuple[str, str]) -> Reference:
    name, cif = pair
    if not isinstance(cif, str):
        return Reference(name, "", None, f"empty: no value in the column 'cif', got {cif!r}")
    try:
        return Reference(name, cif, parse_cif(cif)[0])
    except CIFError as err:
        return Reference(name, cif, None, str(err))


def half_of(reference: Reference) -> str:
    """ "tune" or "report", by the formula; a row that cannot be read, by its text."""
    side = split_of(reference.formula or reference.cif, HALVES_SEED, val_share=0.5)
    return "tune" if side == "val" else "report"
