"""Records of the small crystals in tests/cifs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crystallm.checks.filter import parse_record
from crystallm.records import CIFRecord


@pytest.fixture(scope="session")
def cif(root: Path) -> Callable[[str], str]:
    """The text of tests/cifs/NAME.cif."""
    return lambda name: (root / "tests/cifs" / f"{name}.cif").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def parsed() -> Callable[[str], CIFRecord]:
    def parse(text: str) -> CIFRecord:
        record = parse_record(CIFRecord("x", text))
        assert record.rejected_by is None, record.reason
        return record

    return parse
