"""All checks by name, and the rule sets that reject on some and report others."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from crystallm.checks.bonds import check_bonds
from crystallm.checks.composition import (
    check_cdvae_composition,
    check_charge,
    check_formula,
    check_multiplicity,
    check_stated_formula,
    check_stated_multiplicity,
)
from crystallm.checks.geometric import check_cdvae_structure, check_cell, check_distances, check_sensible
from crystallm.checks.space_group import check_space_group, check_space_group_symbol
from crystallm.records import CIFRecord


@dataclass(frozen=True)
class Check:
    name: str
    function: Callable[[CIFRecord], str | None]  # of a parsed record: None, or the reason it fails
    cost_ms: float  # on conventional cells of the Materials Project, 47 atoms on average; checks run in this order
    gate: bool = False  # where it fails the later ones are not run: they could neither end nor mean anything


@dataclass(frozen=True)
class RuleSet:
    name: str
    rejects: tuple[str, ...]
    reports: tuple[str, ...] = ()


_ALL = (
    Check("sensible", check_sensible, 0.02, gate=True),
    Check("cell", check_cell, 0.03, gate=True),
    Check("multiplicity", check_multiplicity, 0.03),
    Check("formula", check_formula, 0.04),
    Check("stated_multiplicity", check_stated_multiplicity, 0.05),
    Check("stated_formula", check_stated_formula, 0.06),
    Check("charge", check_charge, 0.2),
    Check("cdvae_composition", check_cdvae_composition, 0.3),
    Check("space_group", check_space_group, 1.1),
    Check("space_group_symbol", check_space_group_symbol, 1.2),
    Check("distance", check_distances, 2.0),
    Check("cdvae_structure", check_cdvae_structure, 2.1),
    Check("bonds", check_bonds, 12.0),
)
CHECKS = {check.name: check for check in _ALL}

RULE_SETS = {
    rules.name: rules
    for rules in (
        RuleSet("default", ("cell", "multiplicity", "formula", "space_group", "distance"), ("charge", "bonds")),
        RuleSet("crystallm", ("sensible", "stated_multiplicity", "stated_formula", "space_group_symbol", "bonds")),
        RuleSet("cdvae", ("cdvae_composition", "cdvae_structure")),
    )
}


def rule_set(name: str) -> RuleSet:
    """KeyError names the rule sets there are."""
    if name not in RULE_SETS:
        raise KeyError(f"no rule set {name!r}; there are {', '.join(RULE_SETS)}")
    return RULE_SETS[name]


def checks_by_cost(names: tuple[str, ...]) -> tuple[Check, ...]:
    """KeyError names the closest check."""
    for name in names:
        if name not in CHECKS:
            closest = difflib.get_close_matches(name, CHECKS, n=1, cutoff=0.0)[0]
            raise KeyError(f"no check {name!r}; the closest is {closest!r}, all are {', '.join(CHECKS)}")
    return tuple(sorted((CHECKS[name] for name in names), key=lambda check: check.cost_ms))
