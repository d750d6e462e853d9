from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.resources import resource_path


@pytest.fixture(scope="session")
def demo() -> list[tuple[str, str, Crystal]]:
    """(formula, prototype, crystal) of the demo corpus."""
    columns = ["formula", "prototype", "cif"]
    rows = pq.read_table(resource_path("resources/demo/demo.parquet"), columns=columns).to_pylist()
    return [(row["formula"], row["prototype"], parse_cif(row["cif"])[0]) for row in rows]


@pytest.fixture(scope="session")
def crystal_of(demo: list[tuple[str, str, Crystal]]) -> dict[tuple[str, str], Crystal]:
    return {(prototype, formula): crystal for formula, prototype, crystal in demo}
