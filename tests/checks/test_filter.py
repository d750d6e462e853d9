"""As many records leave as came in, each with its first failure; counts add up, in one process and in several."""

from __future__ import annotations

import pytest

from crystallm.checks import filter as filter_module
from crystallm.checks.filter import FilterConfig, filter_record, filter_records, judge_record, run_filter
from crystallm.checks.rules import CHECKS, Check
from crystallm.records import CIFRecord


@pytest.fixture(scope="module")
def records(root):
    names = ["NaCl", "failing/distance", "rutile", "failing/formula", "failing/charge", "failing/distance", "Po"]
    found = [
        CIFRecord(f"{k} {name}", (root / f"tests/cifs/{name}.cif").read_text(encoding="utf-8"))
        for k, name in enumerate(names)
    ]
    half = found[0].cif.replace("_fract_z\n", "_fract_z\n_atom_site_occupancy\n")
    half = half.replace(" 0 0 0", " 0 0 0 0.5").replace(" 0.5 0.5 0.5", " 0.5 0.5 0.5 1")
    found.insert(2, CIFRecord("occupancy", half))
    found.append(CIFRecord("huge", "", rejected_by="too_large", reason="21,000,000 bytes"))
    return found


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.multi_process)])
def test_records_keep_their_order_and_counts_add_up(records, workers):
    filtered, counts = run_filter(iter(records), FilterConfig(workers=workers, chunk_size=2))
    assert [record.id for record in filtered] == [record.id for record in records]
    assert counts.n_read == len(records) == 9
    assert counts.n_valid + sum(counts.rejected_by.values()) == counts.n_read
    assert counts.rejected_by == {"distance": 2, "formula": 1, "partial_occupancy": 1, "too_large": 1}
    for record in filtered:
        assert (record.rejected_by is None) == (record.reason == "")
        assert record.crystal is not None or record.rejected_by in ("partial_occupancy", "too_large")


def test_it_is_a_stream(records):
    def endless():
        while True:
            yield from records

    stream = filter_records(endless())
    assert [next(stream).rejected_by for _ in range(3)] == [None, "distance", "partial_occupancy"]


def test_further_checks_reject_where_asked(records):
    _, counts = run_filter(records, FilterConfig(reject_on=("charge",)))
    assert counts.rejected_by["charge"] == 1
    config = FilterConfig(reject_on=("charge",))
    assert "charge" not in [check.name for check in config.reporting()]


def test_stopping_at_the_first_failure_gives_the_same_verdict_as_running_all(records):
    for rules in ("default", "crystallm", "cdvae"):
        config = FilterConfig(rules)
        for record in records:
            first = filter_record(record, config.rejecting())
            judged = judge_record(record, config.rejecting(), config.reporting())
            assert (first.rejected_by, first.reason) == (judged.record.rejected_by, judged.record.reason)
            if judged.record.rejected_by in CHECKS:
                assert not judged.passed[judged.record.rejected_by]


def test_what_was_rejected_before_is_not_parsed(records):
    record = CIFRecord("x", records[0].cif, rejected_by="dead_end", reason="no position left")
    assert filter_record(record, FilterConfig().rejecting()) is record


def test_a_check_that_raises_costs_its_record_only(records, monkeypatch):
    def raises(record):
        if "rutile" in record.id:
            raise ArithmeticError("unforeseen")
        return None

    monkeypatch.setitem(filter_module.CHECKS, "cell", Check("cell", raises, 0.0))
    filtered, counts = run_filter(records, FilterConfig())
    assert counts.rejected_by["error"] == 1 and counts.n_read == 9
    [failed] = [record for record in filtered if record.rejected_by == "error"]
    assert "ArithmeticError: unforeseen" in failed.reason


def test_without_smact_charge_is_not_reported_and_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(filter_module, "has_smact", lambda: False)
    assert [check.name for check in FilterConfig().reporting()] == ["bonds"]
    with pytest.raises(ImportError, match="needs smact"):
        FilterConfig("cdvae")
    with pytest.raises(ImportError, match="needs smact"):
        FilterConfig(reject_on=("charge",))


def test_a_wrong_name_is_refused_when_the_config_is_made():
    with pytest.raises(KeyError, match="no rule set 'strict'"):
        FilterConfig("strict")
    with pytest.raises(KeyError, match="closest is 'bonds'"):
        FilterConfig(reject_on=("bond",))
