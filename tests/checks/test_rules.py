"""Each check lets the real crystals pass, and its own bad file fails it and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from crystallm.checks.filter import FilterConfig, judge_record
from crystallm.checks.geometric import MAX_ATOMS, check_cdvae_structure, check_cell, check_sensible
from crystallm.checks.rules import CHECKS, RULE_SETS, checks_by_cost, rule_set
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord

REAL = ["NaCl", "Po", "Si", "SrTiO3", "ZrO2", "hematite", "quartz", "rutile"]
DEFAULT = (*RULE_SETS["default"].rejects, *RULE_SETS["default"].reports)


def of_crystal(lattice, frac, numbers) -> CIFRecord:
    return CIFRecord("x", "", crystal=Crystal(np.array(lattice, float), np.array(frac, float), np.array(numbers)))


@pytest.mark.parametrize("name", REAL)
def test_real_crystals_pass_every_default_check(cif, name):
    config = FilterConfig()
    judged = judge_record(CIFRecord(name, cif(name)), config.rejecting(), config.reporting())
    assert judged.record.rejected_by is None, judged.record.reason
    assert judged.passed == dict.fromkeys(judged.passed, True)
    assert set(judged.passed) == set(DEFAULT)


@pytest.mark.parametrize("name", DEFAULT)
def test_each_bad_file_fails_its_check_and_only_it(cif, name):
    config = FilterConfig()
    judged = judge_record(CIFRecord(name, cif(f"failing/{name}")), config.rejecting(), config.reporting())
    assert [check for check, passed in judged.passed.items() if not passed] == [name]
    assert judged.record.rejected_by == (name if name in RULE_SETS["default"].rejects else None)
    assert bool(judged.record.reason) == (name in RULE_SETS["default"].rejects)


def test_reasons_name_what_was_found_and_what_was_wanted(cif):
    reasons = {}
    for name in DEFAULT:
        record = judge_record(CIFRecord(name, cif(f"failing/{name}")), checks_by_cost((name,))).record
        reasons[name] = record.reason
    assert reasons["distance"] == "H-H 0.40 Å apart, at least 0.50 Å wanted"
    assert reasons["cell"] == "1.73e+03 Å³ per atom, outside 1-1000 Å³"
    assert reasons["formula"] == "_chemical_formula_sum says NaCl2, the sites hold NaCl"
    assert reasons["multiplicity"] == "site Cl1 states multiplicity 8, its operators give it 4 atoms"
    assert reasons["space_group"] == "P4/mmm (123) is stated, Pm-3m (221) is found"
    assert reasons["charge"] == "no charges known of its elements balance in NaF2"
    # covalent radius of C in pymatgen's table of atomic radii: 0.70 Å; 2.00 / 1.40 = 1.43
    assert reasons["bonds"] == "32 of 32 bonds are off, the worst C-C at 1.43 of its due"


def test_the_cell_check_does_not_depend_on_the_cell_chosen():
    # simple cubic polonium in a cell with an angle of 2.9°
    skewed = of_crystal([[3.36, 0, 0], [67.2, 3.36, 0], [0, 0, 3.36]], [[0, 0, 0]], [84])
    assert check_cell(skewed) is None
    assert "outside 10.0-170.0" in (check_sensible(skewed) or "")
    assert "repeats after 0.4 Å" in (check_cell(of_crystal(np.diag([0.4, 10, 10]), [[0, 0, 0]], [1])) or "")
    assert "Å³ per atom" in (check_cell(of_crystal(np.eye(3) * 0.9, [[0, 0, 0]], [1])) or "")


def test_sensible_is_crystallms_limits():
    assert check_sensible(of_crystal(np.diag([0.5, 1000, 3]), [[0, 0, 0]], [1])) is None
    assert "a is 0.49 Å" in (check_sensible(of_crystal(np.diag([0.49, 5, 5]), [[0, 0, 0]], [1])) or "")
    assert "c is 1e+03 Å" in (check_sensible(of_crystal(np.diag([5, 5, 1000.1]), [[0, 0, 0]], [1])) or "")


def test_a_cell_of_too_many_atoms_is_refused_before_its_distances_are_computed():
    n = MAX_ATOMS + 1
    frac = np.zeros((n, 3))
    frac[:, 0] = np.arange(n) / n
    assert (
        check_cell(of_crystal(np.diag([30.0, 30, 30]), frac, np.ones(n, int)))
        == f"{n} atoms in the cell, at most {MAX_ATOMS} are checked"
    )


@pytest.mark.parametrize(
    ("length", "gap", "reason"),
    [
        (5.0, 0.09, "two sites 0.45 Å apart"),
        (5.0, 0.11, None),
        (0.46, 0.5, "Å³, below 0.1 Å³"),
        (0.47, 0.5, "two sites 0.23"),
    ],
)
def test_cdvae_structure(length, gap, reason):
    """Closer than 0.5 Å, or below 0.1 Å³; own images do not count (0.47³ = 0.104)."""
    found = check_cdvae_structure(of_crystal(np.eye(3) * length, [[0, 0, 0], [gap, 0, 0]], [6, 6]))
    assert (found is None) if reason is None else reason in (found or "")
    assert check_cdvae_structure(of_crystal(np.eye(3) * 0.47, [[0, 0, 0]], [6])) is None


def test_cdvae_composition_is_charge_balance(parsed, cif):
    check = CHECKS["cdvae_composition"].function
    assert check(parsed(cif("rutile"))) is None
    assert check(parsed(cif("Si"))) is None  # one element
    assert check(of_crystal(np.eye(3) * 3, [[0, 0, 0], [0.5, 0.5, 0.5]], [29, 30])) is None  # an alloy
    assert "balance in NaF2" in (check(parsed(cif("failing/charge"))) or "")


def test_checks_run_in_order_of_cost():
    for rules in RULE_SETS.values():
        costs = [check.cost_ms for check in checks_by_cost((*rules.rejects, *rules.reports))]
        assert costs == sorted(costs)


def test_unknown_names_are_answered_with_known_ones():
    with pytest.raises(KeyError, match="default, crystallm, cdvae"):
        rule_set("crystalm")
    with pytest.raises(KeyError, match="closest is 'distance'"):
        checks_by_cost(("distances",))
