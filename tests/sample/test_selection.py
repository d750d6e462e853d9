"""Selection among samples, against all-pairs matching by pymatgen and against sums by hand."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif, write_cif
from crystallm.interop import to_structure
from crystallm.records import CIFRecord
from crystallm.sample.selection import (
    SELECTIONS,
    Tolerance,
    clusters,
    polymorph_table,
    polymorphs,
    same_crystal,
    select,
    write_polymorphs,
)
from crystallm.space_groups import space_group_number


def rock_salt(a: float) -> str:
    return nacl("Fm-3m", (a, a, a), "b")


def zinc_blende(a: float) -> str:
    return nacl("F-43m", (a, a, a), "c", 0.25)


def caesium_chloride(a: float) -> str:
    return nacl("Pm-3m", (a, a, a), "b")


def layers(a: float, c: float) -> str:
    return nacl("P4/mmm", (a, a, c), "d")


def nacl(group: str, axes: tuple[float, float, float], letter: str, chlorine: float = 0.5) -> str:
    sites = (Site("Na", "a", (0.0, 0.0, 0.0)), Site("Cl", letter, (chlorine,) * 3))
    number = space_group_number(group)
    return AsymmetricUnit((("Na", 1), ("Cl", 1)), 1, number, (*axes, 90.0, 90.0, 90.0), sites).to_text()


def record(name: str, text: str, nats: float, log_mass: float = 0.0, rejected_by: str | None = None) -> CIFRecord:
    scores = {"log_likelihood_nats": nats, "log_likelihood_per_token": nats / 40, "log_mask_mass_nats": log_mass}
    cif = write_cif(AsymmetricUnit.from_text(text), {})
    return CIFRecord(name, cif, text=text, scores=scores, rejected_by=rejected_by)


def with_scores(samples: list[CIFRecord], name: str, values: dict[str, float]) -> list[CIFRecord]:
    """With a score by the first part of the id; without it where none is named."""
    found = []
    for sample in samples:
        value = values.get(sample.id.partition("-")[0])
        found.append(sample if value is None else replace(sample, scores=sample.scores | {name: value}))
    return found


def with_energies(samples: list[CIFRecord], **energies: float) -> list[CIFRecord]:
    """Predicted ones, eV/atom"""
    return with_scores(samples, "predicted_formation_energy_ev_per_atom", energies)


def with_all_scores(samples: list[CIFRecord]) -> list[CIFRecord]:
    """Those that any selection goes by"""
    return with_scores(with_energies(samples, **ENERGIES), "denoising_error", DENOISING_ERRORS)


ENERGIES = {"salt": -1.8, "caesium": -2.0, "layers": -1.5, "rejected": -3.0}
DENOISING_ERRORS = {"salt": 0.3, "caesium": 0.25, "layers": 0.1}

# Rock salt three times, caesium chloride twice, layers once, the last the likeliest.
SAMPLES = [
    record("rejected", rock_salt(5.7), -1.0, rejected_by="distance"),
    record("salt-1", rock_salt(5.6), -9.0),
    record("caesium-1", caesium_chloride(3.5), -8.0, log_mass=-0.1),
    record("salt-2", rock_salt(5.8), -7.0, log_mass=-3.0),
    record("layers", layers(2.6, 12.0), -6.0, log_mass=-2.0),
    record("caesium-2", caesium_chloride(3.4), -8.5, log_mass=-0.1),
    record("salt-3", rock_salt(5.4), -9.5, log_mass=-3.0),
]


@pytest.fixture(scope="module")
def real_texts(root: Path) -> list[str]:
    """Crystals of the tests and distorted copies of them, in a mixed order."""
    texts = []
    random = np.random.default_rng(0)
    for name in ("rutile", "SrTiO3", "Si", "ZrO2"):
        unit = canonicalize(parse_cif((root / "tests" / "cifs" / f"{name}.cif").read_text())[0])
        for strain in (0.0, 0.2):
            a, b, c, *angles = unit.cell
            axes = [round(length * (1 + strain * random.random()), 2) for length in (a, b, c)]
            ties = dict(unit.group.ties.equal_lengths)
            axes = [axes[ties.get(axis, axis)] for axis in range(3)]
            texts.append(replace(unit, cell=(*axes, *angles)).to_text())
    order = random.permutation(len(texts))
    return [texts[k] for k in order] + [texts[0]]


@pytest.mark.parametrize("tolerance", ["benchmark", "distinct"])
def test_clusters_against_all_pairs(tolerance: Tolerance, real_texts: list[str]) -> None:
    """Each member matches the first of its cluster, and no first matches another: by pymatgen, pair by pair."""
    structures = [to_structure(AsymmetricUnit.from_text(text).to_crystal()) for text in real_texts]
    settings = {"stol": 0.5, "angle_tol": 10, "ltol": 0.3} if tolerance == "benchmark" else {}
    matcher = StructureMatcher(**settings)

    def matches(i: int, j: int) -> bool:
        first, second = sorted((i, j), key=lambda k: real_texts[k])
        return matcher.fit(structures[first], structures[second])

    found = clusters(real_texts, tolerance)
    assert sorted(itertools.chain(*found)) == list(range(len(real_texts)))
    assert all(matches(group[0], k) for group in found for k in group)
    assert not any(matches(one[0], other[0]) for one, other in itertools.combinations(found, 2))
    sizes = [len(group) for group in found]
    assert sizes == sorted(sizes, reverse=True) and 4 <= len(found) < len(real_texts)


def test_same_crystal_is_symmetric(real_texts: list[str]) -> None:
    for one, other in itertools.combinations(real_texts[:6], 2):
        assert same_crystal(one, other) == same_crystal(other, one)
    # The tolerances differ: a chlorine atom that moves by a quarter of the diagonal is within the benchmark's.
    assert same_crystal(zinc_blende(6.0), zinc_blende(6.5)) and not same_crystal(zinc_blende(6.0), rock_salt(6.0))
    assert same_crystal(zinc_blende(6.0), rock_salt(6.0), "benchmark")


def test_what_has_no_text_is_alone() -> None:
    assert clusters(["", rock_salt(5.6), "", rock_salt(5.8)]) == [[1, 3], [0], [2]]


def test_clusters_of_known_crystals() -> None:
    texts = [sample.text for sample in SAMPLES]
    assert clusters(texts) == [[0, 1, 3, 6], [2, 5], [4]]


@pytest.mark.parametrize(
    ("by", "answer"),
    [
        ("first", "salt-1"),
        ("likelihood", "layers"),
        ("likelihood_per_token", "layers"),
        ("self_consistency", "salt-2"),  # three of six, the likeliest among them
        # Weights: 1, exp(-0.1) twice, exp(-3) twice, exp(-2): salt 1.10, caesium 1.81, layers 0.14.
        ("weighted_self_consistency", "caesium-1"),
        ("log_mask_mass_nats", "salt-1"),
        ("min:log_mask_mass_nats", "salt-2"),
    ],
)
def test_select(by: str, answer: str) -> None:
    index = select(SAMPLES, by)
    assert index is not None and SAMPLES[index].id == answer


@pytest.mark.parametrize(
    ("errors", "answer"),
    [
        ({"salt": 0.2, "caesium": 0.2, "layers": 0.2}, "salt-2"),  # plain votes: three, two, one
        ({"salt": 0.25, "caesium": 0.2, "layers": 0.2}, "salt-2"),  # 3 exp(-1/4) = 2.34 against 2
        ({"salt": 0.29, "caesium": 0.2, "layers": 0.2}, "caesium-1"),  # 3 exp(-9/20) = 1.91 against 2
    ],
)
def test_votes_weighed_by_denoising_errors(errors: dict[str, float], answer: str) -> None:
    samples = with_scores(SAMPLES, "denoising_error", errors)
    index = select(samples, "denoising_votes")
    assert index is not None and samples[index].id == answer


def test_select_does_not_depend_on_the_order() -> None:
    given = with_all_scores(SAMPLES)
    for by in set(SELECTIONS) - {"first"}:
        for samples in (given[::-1], given[3:] + given[:3]):
            assert samples[select(samples, by)].id == given[select(given, by)].id  # type: ignore[index]


@pytest.mark.parametrize(
    ("energies", "answer"),
    [
        ({"salt": -2.0, "caesium": -2.0, "layers": -2.0}, "salt-2"),  # plain votes: three, two, one
        ({"salt": -1.9, "caesium": -2.0, "layers": -1.5}, "salt-2"),  # 3 exp(-1/4) = 2.34 against 2
        ({"salt": -1.8, "caesium": -2.0, "layers": -1.5}, "caesium-1"),  # 3 exp(-2/3) = 1.54 against 2
        ({"salt": -2.0, "caesium": -2.3, "layers": -2.8}, "layers"),  # 0.21, 0.38, 1
        ({"caesium": -2.0, "layers": -2.0, "rejected": -9.0}, "caesium-1"),  # no energy, no vote
    ],
)
def test_votes_weighed_by_energies(energies: dict[str, float], answer: str) -> None:
    samples = with_energies(SAMPLES, **energies)
    index = select(samples, "energy_votes")
    assert index is not None and samples[index].id == answer


def test_votes_by_energies_want_energies() -> None:
    with pytest.raises(ValueError, match=r"no score 'predicted_formation_energy_ev_per_atom'; it has log_likelihood"):
        select(SAMPLES, "energy_votes")


def test_nothing_valid_and_unknown_names() -> None:
    assert select(SAMPLES[:1]) is None and select([]) is None and polymorphs(SAMPLES[:1]) == []
    with pytest.raises(ValueError, match=r"no score 'energy'; it has log_likelihood_nats.*self_consistency"):
        select(SAMPLES, "energy")


def test_polymorphs(tmp_path: Path) -> None:
    found = polymorphs(SAMPLES, "weighted_self_consistency")
    rows = {row.id: row for row in found}
    assert list(rows) == ["caesium-1", "salt-2", "layers"], "by weighted votes"
    total = 1 + 2 * math.exp(-0.1) + 2 * math.exp(-3) + math.exp(-2)
    salt = rows["salt-2"]
    assert (salt.n, salt.share, salt.space_group_symbol, salt.space_group_number) == (3, 0.5, "Fm-3m", 225)
    assert salt.weighted_share == pytest.approx((1 + 2 * math.exp(-3)) / total)
    assert salt.selection_value == pytest.approx(6 * salt.weighted_share) and salt.n_agreeing == 3
    assert (salt.formula_units, salt.log_likelihood_nats, salt.formula) == (1, -7.0, "NaCl")
    assert salt.volume_per_atom_ang3 == pytest.approx(5.8**3 / 8)
    assert salt.density_g_per_cm3 == pytest.approx(4 * (22.990 + 35.453) / 0.602214 / 5.8**3, rel=1e-4)
    assert sum(row.weighted_share for row in found) == pytest.approx(1)

    table = polymorph_table(found, limit=2)
    assert "Fm-3m (225)" in table and table.endswith("… and 1 more") and "eV/atom" not in table
    write_polymorphs(tmp_path / "rows.csv", [("Na Cl", found)])
    with open(tmp_path / "rows.csv", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["id"] for row in written] == list(rows) and float(written[1]["share"]) == 0.5
    assert [row["answer"] for row in written] == ["True", "False", "False"]
    assert {row["selected_by"] for row in written} == {"weighted_self_consistency"}
    assert float(written[1]["selection_value"]) == pytest.approx(salt.selection_value)


@pytest.mark.parametrize(
    ("by", "heading", "ids", "values"),
    [
        ("self_consistency", "votes", ["salt-2", "caesium-1", "layers"], ["3", "2", "1"]),
        # 2, 3 exp(-2/3), exp(-5/3); with importance 1.810, 1.100 and 0.135 of 3.045
        ("energy_votes", "energy votes", ["caesium-1", "salt-2", "layers"], ["2.00", "1.54", "0.19"]),
        # 3 exp(-1), 1, 2 exp(-3/4)
        ("denoising_votes", "denoising votes", ["salt-2", "layers", "caesium-1"], ["1.10", "1.00", "0.94"]),
        ("weighted_self_consistency", "weighted votes", ["caesium-1", "salt-2", "layers"], ["3.57", "2.17", "0.27"]),
        ("likelihood", "log p nats", ["layers", "salt-2", "caesium-1"], ["-6.0", "-7.0", "-8.0"]),
        ("likelihood_per_token", "log p/token", ["layers", "salt-2", "caesium-1"], ["-0.150", "-0.175", "-0.200"]),
        ("min:density_g_per_cm3", "g/cm³", ["layers", "salt-2", "caesium-1"], ["1.20", "1.99", "2.26"]),
        ("hardness", "hardness", ["salt-1", "layers", "caesium-1"], ["3.000", "2.000", "1.000"]),
    ],
)
def test_rows_stand_as_the_selection_prefers_them(by: str, heading: str, ids: list[str], values: list[str]) -> None:
    """The number it goes by is in a column of its name, and the answer's row comes first, with a star."""
    given = []
    for sample in with_all_scores(SAMPLES):
        name = sample.id.partition("-")[0]
        hardness = {"salt": 3.0, "layers": 2.0}.get(name, 1.0)
        density = parse_cif(sample.cif)[0].density_g_per_cm3
        given.append(replace(sample, scores={**sample.scores, "hardness": hardness, "density_g_per_cm3": density}))
    rows = polymorphs(given, by)
    assert [row.answer for row in rows] == [True, False, False]
    assert rows[0].id == given[select(given, by)].id  # type: ignore[index]
    head, *lines = polymorph_table(rows).splitlines()
    end = head.index(heading) + len(heading)
    assert [row.id for row in rows] == ids
    assert [line[:end].split()[-1] for line in lines] == values
    assert [line.startswith("*") for line in lines] == [True, False, False]


def test_every_selection_s_answer_is_the_first_row() -> None:
    given = with_all_scores(SAMPLES)
    for by in (*SELECTIONS, "min:log_mask_mass_nats"):
        for samples in (given, given[::-1], given[3:] + given[:3]):
            assert polymorphs(samples, by)[0].id == samples[select(samples, by)].id  # type: ignore[index]


def test_crystals_that_a_vote_takes_for_one_stand_together() -> None:
    """At the benchmark's tolerance zinc blende is rock salt: three votes against two."""
    samples = [
        record("caesium-1", caesium_chloride(3.5), -5.0),
        record("caesium-2", caesium_chloride(3.4), -5.5),
        record("blende", zinc_blende(6.0), -9.0),
        record("salt-1", rock_salt(6.0), -7.0),
        record("salt-2", rock_salt(5.8), -8.0),
    ]
    rows = polymorphs(samples)
    assert [(row.id, row.n, row.n_agreeing, row.answer) for row in rows] == [
        ("salt-1", 2, 3, True),
        ("blende", 1, 3, False),
        ("caesium-1", 2, 2, False),
    ]


def test_columns_that_mean_nothing_are_left_out() -> None:
    assert "weighted %" in polymorph_table(polymorphs(SAMPLES))
    unweighted = polymorph_table(polymorphs(SAMPLES, weighted=False))
    assert "weighted %" not in unweighted and "nan" not in unweighted
    predicted = polymorph_table(polymorphs(with_energies(SAMPLES, salt=-2.125, layers=-1.5)))
    assert "eV/atom" in predicted and "-2.125  salt-2" in predicted and "nan  caesium-1" in predicted
