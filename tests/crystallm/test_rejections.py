"""What commands say of rejected records: counts, the name of the reason once, an example."""

from __future__ import annotations

from crystallm.checks.filter import FilterConfig, run_filter
from crystallm.data.files import records_of_bytes
from crystallm.records import CIFRecord
from crystallm.rejections import Rejections, rejection


def test_the_most_frequent_comes_first_with_its_first_example() -> None:
    rejections = Rejections()
    for record_id, rejected_by, reason in (("a", "x", "0.4 Å"), ("b", "y", "two\nlines"), ("c", "y", "other")):
        rejections.add(record_id, rejected_by, reason)
    assert rejections.lines() == ["  2 y: two lines (b)", "  1 x: 0.4 Å (a)"]


def test_the_name_stands_there_once_also_for_records_of_older_versions() -> None:
    [record], _ = run_filter([CIFRecord("a", "data_x\n")], FilterConfig())
    assert record.rejected_by == "no_cell" and record.reason.startswith("block 'x': no value for _cell_length_a")
    assert rejection("no_cell", f"no_cell: {record.reason}") == rejection("no_cell", record.reason)
    [binary] = records_of_bytes("binary", b"a\0", "binary.cif")
    assert rejection(binary.rejected_by or "", binary.reason) == "binary: byte 0 at position 1, which no text has"
