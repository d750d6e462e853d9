"""A small benchmark: eight rows, of which two are polymorphs of one formula and one is no CIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crystallm.crystal import Crystal
from crystallm.interop import to_structure

CUBIC = {
    "rock salt": ([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "caesium chloride": ([[0.6, 0, 0], [0, 0.6, 0], [0, 0, 0.6]], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "zinc blende": ([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], [[0, 0, 0], [0.25, 0.25, 0.25]]),
}
ROWS = [
    ("nacl", "rock salt", 5.64, (11, 17)),
    ("cscl-1", "caesium chloride", 6.9, (55, 17)),
    ("zns", "zinc blende", 5.41, (30, 16)),
    ("cscl-2", "rock salt", 7.0, (55, 17)),
    ("broken", "", 0.0, ()),
    ("mgo", "rock salt", 4.21, (12, 8)),
    ("inp", "zinc blende", 5.87, (49, 15)),
    ("tlbr", "caesium chloride", 6.6, (81, 35)),
]


def row_of(name: str, kind: str, length: float, numbers: tuple[int, ...]) -> dict[str, str]:
    if not kind:
        return {"material_id": name, "cif": "data_broken\n_cell_length_a wide\n", "split": "val"}
    lattice, sites = CUBIC[kind]
    crystal = Crystal(np.array(lattice) * length, np.array(sites), np.array(numbers))
    return {"material_id": name, "cif": to_structure(crystal).to(fmt="cif"), "split": "val"}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "small.parquet"
    pd.DataFrame([row_of(*row) for row in ROWS]).to_parquet(path)
    return path
