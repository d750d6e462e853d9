"""Uniqueness and novelty against comparisons of every pair."""

from __future__ import annotations

import itertools

import pytest

from crystallm.canonical import canonicalize
from crystallm.checks import match_index
from crystallm.checks.known import same_crystal
from crystallm.cif import parse_cif
from crystallm.metrics.novelty import known_texts, unique_texts


@pytest.fixture(scope="module")
def texts(cif_texts):
    """Rutile, stretched a little, twice, and a lot; rock salt; quartz."""
    text = {name: canonicalize(parse_cif(cif_texts[name])[0]).to_text() for name in ("NaCl", "quartz", "rutile")}
    rutile = text["rutile"]
    assert "_cell_length_c 2.96" in rutile
    stretched = [rutile.replace("_cell_length_c 2.96", f"_cell_length_c {c}") for c in ("3.00", "3.05", "4.90")]
    return [rutile, *stretched, text["NaCl"], rutile, text["quartz"]]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.multi_process)])
def test_unique_texts_are_those_that_match_none_before(texts, workers):
    first = unique_texts(texts, workers)
    expected = {}
    for k, text in enumerate(texts):
        expected.setdefault(text, next((t for t in texts[:k] if expected[t] == t and same_crystal(t, text)), text))
    assert first == expected
    assert len(set(first.values())) == 4


def test_known_texts_are_those_that_match_one_of_the_reference(texts):
    reference = [texts[1], texts[4]]
    known = known_texts(texts, reference)
    matching = {t for t, r in itertools.product(texts, reference) if same_crystal(t, r)}
    assert set(known) == set(texts)
    assert {text for text, found in known.items() if found is not None} == matching
    assert set(known.values()) - {None} <= set(reference)
    assert known[texts[3]] is None and known[texts[6]] is None
    assert known_texts(texts, []) == dict.fromkeys(texts)
    assert known_texts([], reference) == {}


def test_what_cannot_be_compared_is_left_out_and_said(texts, monkeypatch, caplog):
    def fails(first, second):
        raise ArithmeticError("unforeseen")

    monkeypatch.setattr(match_index, "matches", fails)
    assert set(unique_texts(texts)) == {texts[4], texts[6]}
    assert set(known_texts(texts, [texts[0], texts[4], texts[6]])) == {texts[0], texts[4], texts[6]}
    assert "4 crystals of TiO2 could not be compared: ArithmeticError: unforeseen" in caplog.text
