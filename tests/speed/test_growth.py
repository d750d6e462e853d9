"""Growth: structures without end, sizes in processes of their own; and the all-pairs answer beside the index's."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.canonical import canonicalize
from crystallm.checks import match_index
from crystallm.checks.match_index import MatchIndex
from crystallm.cif import parse_cif
from crystallm.metrics.novelty import first_of_each
from crystallm.speed import growth
from crystallm.speed.all_pairs import compare, first_by_all_pairs
from crystallm.speed.growth import REPEAT_EVERY, GrowthConfig, exponents, structures, substituted
from crystallm.speed.rows import read_corpus
from crystallm.speed.tables import growth_table
from tokenizer import CIFTokenizer, Grammar


@pytest.fixture(scope="module")
def texts():
    return read_corpus(None, 60).texts


def test_structures_have_no_end_and_are_the_same_each_time(texts):
    made = list(structures(texts, 200, seed=1))
    assert made[:60] == list(texts) and made == list(structures(texts, 200, seed=1))
    assert made[60:] != list(structures(texts, 200, seed=2))[60:]
    grammar = Grammar(CIFTokenizer())
    for text in made[60:]:
        grammar.states(grammar.tokenizer.encode(text))
        crystal = AsymmetricUnit.from_text(text).to_crystal()
        assert crystal.reduced_formula == text.partition("\n")[0].removeprefix("data_")
    assert len({text.partition("\n")[0] for text in made[60:]}) > 100


def test_a_tenth_are_near_copies(texts):
    heads = [match_index.composition_of(substituted(texts, k, 0)) for k in range(100)]
    copies = [k for k in range(1, 100) if heads[k] == heads[k - 1]]
    assert copies == list(range(REPEAT_EVERY - 1, 100, REPEAT_EVERY))
    first, again = substituted(texts, 8, 0), substituted(texts, 9, 0)
    assert MatchIndex([first]).find(again) == 0 and first != again


def test_the_exponent_of_a_power_law():
    rows = [{"n": n, "cpu_seconds": 0.01 * n**2, "peak_mb": 300} for n in (10, 100, 1000)]
    found = exponents(rows)
    assert found["time"] == pytest.approx(2) and found["memory"] == pytest.approx(0, abs=1e-9)
    assert exponents(rows[:1]) is None


def test_sizes_and_stages_are_checked():
    with pytest.raises(ValueError, match="each larger than the one before"):
        GrowthConfig(sizes=(10, 5))
    with pytest.raises(ValueError, match="no stage 'match'; there are prepare"):
        GrowthConfig(stages=("match",))


def run(root, folder, *arguments):
    command = [
        sys.executable,
        str(root / "bin/benchmark_scaling.py"),
        "--sizes",
        "20,40",
        "--out",
        "g.json",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "g.json").read_text())
    assert [path.name for path in folder.iterdir()] == ["g.json"]
    for rows in result["stages"].values():
        assert [row["n"] for row in rows] == [20, 40]
        assert all(row["cpu_seconds"] > 0 for row in rows)
        if sys.platform == "linux":
            assert all(row["peak_mb"] >= row["before_mb"] > 0 for row in rows)
    return result["stages"], done.stdout


@pytest.mark.slow
@pytest.mark.multi_process
def test_the_command_measures_a_stage(root, tmp_path):
    stages, printed = run(root, tmp_path, "--stages", "unique")
    assert list(stages) == ["unique"] and stages["unique"][1]["n_unique"] == 40
    assert "unique: time grows as n^" in printed


@pytest.mark.slow
@pytest.mark.multi_process
def test_the_command_measures_every_stage(root, tmp_path):
    stages, _ = run(root, tmp_path)
    assert list(stages) == ["prepare", "sample", "evaluate", "unique"]
    assert [row["n_ended"] for row in stages["sample"]] == [20, 40]
    assert stages["evaluate"][1]["n_valid"] == 40


@pytest.mark.parametrize("stage", ["prepare", "sample", "evaluate"])
def test_a_stage_in_this_process(stage, texts, tmp_path):
    config = GrowthConfig(sizes=(4,), folder=str(tmp_path))
    growth._make_input((stage, 4, texts, config))
    facts = growth.STAGES[stage](4, texts, config)
    assert set(facts.values()) == {4}


# ---------------------------------------------------------------- no match is lost


@pytest.fixture(scope="module")
def crowd(root):
    """Distorted rutiles and anatase-like cells, one composition and group: from near copies to no match at all."""
    text = canonicalize(parse_cif((root / "tests/cifs/rutile.cif").read_text())[0]).to_text()
    unit, rng, made = AsymmetricUnit.from_text(text), np.random.default_rng(0), []
    for _ in range(25):
        a, c = 4.6 * rng.uniform(0.6, 1.7), 2.96 * rng.uniform(0.6, 1.7)
        x = rng.uniform(0.2, 0.4)
        sites = tuple(
            type(site)(site.symbol, site.letter, tuple(x if 0.2 < v < 0.4 else v for v in site.frac))
            for site in unit.sites
        )
        made.append(type(unit)(unit.formula, unit.formula_units, unit.space_group_number, (a, a, c, 90, 90, 90), sites))
    return [one.to_text() for one in made]


def test_the_index_finds_what_all_pairs_find(crowd):
    found = first_of_each(tuple(crowd))
    plain, n_pairs = first_by_all_pairs(crowd)
    assert found.match_of == plain and 3 < len(plain) < 22
    assert found.n_pairs == n_pairs > found.n_compared
    result = compare(crowd)
    beside = result["beside_all_pairs"]
    assert beside["n_different"] == 0 and beside["n_duplicates"] == len(plain) == result["index_alone"]["n_duplicates"]
    assert beside["share_saved"] == pytest.approx(1 - found.n_compared / n_pairs, abs=1e-4)


def test_a_lost_match_is_seen(crowd, monkeypatch):
    monkeypatch.setattr(MatchIndex, "_fitting", lambda self, text, places: [])
    monkeypatch.setattr(match_index, "is_scaled_copy", lambda first, second: False)
    assert compare(crowd)["beside_all_pairs"]["n_different"] > 0


def test_the_time_that_all_pairs_may_take_is_kept(crowd):
    assert compare(crowd, max_cpu_seconds=-1)["beside_all_pairs"]["n_buckets"] == 0


def test_the_table_says_what_was_left_out():
    rows = [{"n": n, "cpu_seconds": n / 100, "peak_mb": None} for n in (10, 1000)]
    result = {"stages": {"unique": rows}, "exponents": {"unique": exponents(rows)}, "left_out": {"unique": [10_000]}}
    lines = growth_table(result).splitlines()
    assert lines[2].split() == ["unique", "1,000", "10.0", "10", "-"]
    assert lines[3:] == [
        "unique: time grows as n^1.00",
        "unique: n = 10,000 left out, it would have taken too long",
    ]
