"""Full CIFs for users: operators, formula, Z, multiplicities, Wyckoff letters, exact coordinates. Needs numpy only."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.crystal import Crystal, formula_text, lattice_from_parameters, reduce_composition, right_handed

if TYPE_CHECKING:
    from crystallm.asymmetric_unit import AsymmetricUnit
    from crystallm.space_groups import SpaceGroup

_PROVENANCE = "# crystallm.provenance."
# Groups with two origins in the International Tables; ours is the second, at the centre of symmetry.
_TWO_ORIGINS = {
    *(48, 50, 59, 68, 70, 85, 86, 88, 125, 126, 129, 130, 133, 134, 137, 138, 141, 142),
    *(201, 203, 222, 224, 227, 228),
}


def write_cif(source: AsymmetricUnit | Crystal, provenance: Mapping[str, Any] | None = None) -> str:
    """A full CIF, which pymatgen, ASE, gemmi and VESTA read as the same crystal; a plain Crystal is written in P 1.

    `provenance`, plain data, stands in comments at the top; read_provenance returns it.
    """
    if isinstance(source, Crystal):
        symbol, number, operators = "P 1", 1, "1 'x, y, z'\n"
        cell, volume = source.cell.tolist(), source.volume_ang3
        formula, formula_units = reduce_composition(source.composition)
        columns = "_atom_site_fract_x\n"
        frac_coords = right_handed(source.lattice, source.frac_coords).tolist()
        sites = [(element, "1", *frac) for element, frac in zip(source.symbols, frac_coords, strict=True)]
    else:
        group = source.group
        symbol, number, operators = full_symbol(group), group.number, _operator_lines(group.number)
        cell, volume = source.cell, float(np.linalg.det(lattice_from_parameters(*source.cell)))
        formula, formula_units = dict(source.formula), source.formula_units * group.n_centring
        columns = "_atom_site_Wyckoff_symbol\n_atom_site_fract_x\n"
        sites = []
        for site in source.sites:
            position = group.position(site.letter)
            frac = position.coordinates(np.array(site.frac)).tolist()
            sites.append((site.symbol, f"{position.multiplicity} {site.letter}", *frac))
    counts: Counter[str] = Counter()
    lines = []
    for element, which, x, y, z in sites:
        counts[element] += 1
        lines.append(f"{element}{counts[element]} {element} {which} {x:.8f} {y:.8f} {z:.8f} 1\n")
    head = [f"{_PROVENANCE}{key} {json.dumps(value)}\n" for key, value in (provenance or {}).items()]
    formula_sum = " ".join(f"{element}{count if count > 1 else ''}" for element, count in formula.items())
    return (
        f"{''.join(head)}data_{formula_text(formula)}\n"
        f"_chemical_formula_sum '{formula_sum}'\n"
        f"_cell_length_a {cell[0]:.8f}\n_cell_length_b {cell[1]:.8f}\n_cell_length_c {cell[2]:.8f}\n"
        f"_cell_angle_alpha {cell[3]:.8f}\n_cell_angle_beta {cell[4]:.8f}\n_cell_angle_gamma {cell[5]:.8f}\n"
        f"_cell_volume {volume:.8f}\n_cell_formula_units_Z {formula_units}\n"
        f"_symmetry_space_group_name_H-M '{symbol}'\n_symmetry_Int_Tables_number {number}\n"
        f"loop_\n_symmetry_equiv_pos_site_id\n_symmetry_equiv_pos_as_xyz\n{operators}"
        "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_symmetry_multiplicity\n"
        f"{columns}_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n{''.join(lines)}"
    )


def read_provenance(text: str) -> dict[str, Any]:
    """What write_cif was given; {} for CIFs that it did not write."""
    provenance: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith(_PROVENANCE):
            key, _, value = line[len(_PROVENANCE) :].partition(" ")
            try:
                provenance[key] = json.loads(value)
            except ValueError:  # a line that somebody has edited
                provenance[key] = value
    return provenance


def full_symbol(group: SpaceGroup) -> str:
    """P2_1/c -> P 1 21/c 1, Fd-3m -> F d -3 m :2, R-3m -> R -3 m :H"""
    axes = [axis.replace("_", "") for axis in re.findall(r"-?\d(?:_\d)?(?:/[a-z])?|[a-z]", group.symbol[1:])]
    if group.crystal_system == "monoclinic":
        axes = ["1", *axes, "1"]
    setting = ":2" if group.number in _TWO_ORIGINS else ":H" if group.symbol[0] == "R" else ""
    return " ".join([group.symbol[0], *axes, *([setting] if setting else [])])


@functools.cache
def _operator_lines(number: int) -> str:
    from crystallm.space_groups import space_group

    group = space_group(number)
    pairs = zip(group.rotations.tolist(), group.translations.tolist(), strict=True)
    return "".join(f"{i} '{_operator_text(r, t)}'\n" for i, (r, t) in enumerate(pairs, start=1))


def _operator_text(rotation: Sequence[Sequence[int]], translation: Sequence[float]) -> str:
    parts = []
    for row, shift in zip(rotation, translation, strict=True):
        terms = [("+" if value > 0 else "-") + axis for value, axis in zip(row, "xyz", strict=True) if value]
        text = "".join(terms).removeprefix("+")
        fraction = Fraction(shift).limit_denominator(24)
        parts.append(f"{text}+{fraction}" if fraction else text)
    return ", ".join(parts)
