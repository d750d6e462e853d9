"""The CIF text of released CrystaLLM models: what of it follows from the formula, and the full CIF it stands for.

The formula is that of the conventional cell, Na4Cl4 for rock salt. The text lists `x, y, z` for any group, so its sites
mean nothing until the operators of the stated group are written in. Knows no tokens.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from crystallm.cif import CIFError, parse_cif
from crystallm.space_groups import SpaceGroupError, space_group, space_group_number
from tokenizer.elements import ELEMENT_RANK

GROUP_LINE = "_symmetry_space_group_name_H-M "
BLOCK_HEADER = "loop_\n_atom_type_symbol\n_atom_type_electronegativity\n_atom_type_radius\n_atom_type_ionic_radius\n"
OPERATORS = "loop_\n_symmetry_equiv_pos_site_id\n_symmetry_equiv_pos_as_xyz\n1 'x, y, z'\n"
SITE_HEADER = (
    "loop_\n_atom_site_type_symbol\n_atom_site_label\n_atom_site_symmetry_multiplicity\n"
    "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
)

# Electronegativity, atomic radius (Å) and mean ionic radius (Å), as pymatgen gives them and as the models were trained
# on them: for He, Ne, Ar Allen's electronegativities, for the noble gases but Ar van der Waals radii, not padded to
# four decimals. A test compares with pymatgen.
# fmt: off
_ATOM_TYPES = """
    Cs 0.7900 2.6000 1.8100, K 0.8200 2.2000 1.5200, Rb 0.8200 2.3500 1.6600, Ba 0.8900 2.1500 1.4900,
    Na 0.9300 1.8000 1.1600, Sr 0.9500 2.0000 1.3200, Li 0.9800 1.4500 0.9000, Ca 1.0000 1.8000 1.1400,
    Ac 1.1000 1.9500 1.2600, La 1.1000 1.9500 1.1720, Tb 1.1000 1.7500 0.9815, Yb 1.1000 1.7500 1.0840,
    Ce 1.1200 1.8500 1.0800, Pm 1.1300 1.8500 1.1100, Pr 1.1300 1.8500 1.0600, Nd 1.1400 1.8500 1.2765,
    Sm 1.1700 1.8500 1.2290, Eu 1.2000 1.8500 1.1985, Gd 1.2000 1.8000 1.0750, Dy 1.2200 1.7500 1.1310,
    Y 1.2200 1.8000 1.0400, Ho 1.2300 1.7500 1.0410, Er 1.2400 1.7500 1.0300, Tm 1.2500 1.7500 1.0950,
    Lu 1.2700 1.7500 1.0010, Pu 1.2800 1.7500 0.9675, Hf 1.3000 1.5500 0.8500, Th 1.3000 1.8000 1.0800,
    Mg 1.3100 1.5000 0.8600, Zr 1.3300 1.5500 0.8600, Np 1.3600 1.7500 1.0000, Sc 1.3600 1.6000 0.8850,
    U 1.3800 1.7500 0.9913, Pa 1.5000 1.8000 1.0400, Ta 1.5000 1.4500 0.8200, Ti 1.5400 1.4000 0.8517,
    Mn 1.5500 1.4000 0.8775, Be 1.5700 1.0500 0.5900, Nb 1.6000 1.4500 0.8200, Al 1.6100 1.2500 0.6750,
    Tl 1.6200 1.9000 1.3325, V 1.6300 1.3500 0.7775, Zn 1.6500 1.3500 0.8800, Cr 1.6600 1.4000 0.9400,
    Cd 1.6900 1.5500 1.0900, In 1.7800 1.5500 0.9400, Ga 1.8100 1.3000 0.7600, Fe 1.8300 1.4000 0.8525,
    Co 1.8800 1.3500 0.7683, Cu 1.9000 1.3500 0.8200, Re 1.9000 1.3500 0.7125, Si 1.9000 1.1000 0.5400,
    Tc 1.9000 1.3500 0.7417, Ni 1.9100 1.3500 0.7400, Ag 1.9300 1.6000 1.0867, Sn 1.9600 1.4500 0.8300,
    Hg 2.0000 1.5000 1.2450, Ge 2.0100 1.2500 0.7700, Bi 2.0200 1.6000 1.0350, B 2.0400 0.8500 0.4100,
    Sb 2.0500 1.4500 0.8300, Te 2.1000 1.4000 1.2933, Mo 2.1600 1.4500 0.7750, As 2.1800 1.1500 0.6600,
    P 2.1900 1.0000 0.5500, H 2.2000 0.2500 0.0000, Ir 2.2000 1.3500 0.7650, Os 2.2000 1.3000 0.6730,
    Pd 2.2000 1.4000 0.8462, Ru 2.2000 1.3000 0.6610, Pt 2.2800 1.3500 0.8050, Rh 2.2800 1.3500 0.7450,
    Pb 2.3300 1.8000 1.1225, W 2.3600 1.3500 0.7667, Au 2.5400 1.3500 1.0700, C 2.5500 0.7000 0.3000,
    Se 2.5500 1.1500 1.0133, S 2.5800 1.0000 0.8800, Xe 2.6000 2.16 0.6200, I 2.6600 1.4000 1.2733,
    Br 2.9600 1.1500 0.8825, Kr 3.0000 2.02 0.0000, N 3.0400 0.6500 0.6300, Cl 3.1600 1.0000 0.7800,
    O 3.4400 0.6000 1.2600, F 3.9800 0.5000 0.7050, Ar 3.24 0.7100 0.0000, He 4.16 1.4 0.0000, Ne 4.79 1.54 0.0000
"""
# fmt: on

# Formulas that pymatgen, whose reduced formulas the texts hold, writes twice as large.
_DOUBLED = ("LiO", "NaO", "KO", "HO", "CsO", "RbO", "O", "N", "F", "Cl", "H")

_ATOM_TYPE_BLOCK = re.compile(r"^loop_\n(?:_atom_type_\w+\n)+(?:[A-Z][^\n]*\n)*", re.MULTILINE)
_SITES = re.compile(r"^loop_\n(?:_atom_site_\w+\n)+(?:[A-Z][^\n]*\n)+\s*\Z", re.MULTILINE)


@functools.cache
def atom_types() -> dict[str, tuple[str, str, str]]:
    """Electronegativity, atomic and ionic radius of each element that the vocabulary has, as the texts write them."""
    rows = (row.split() for row in _ATOM_TYPES.split(","))
    return {symbol: (electronegativity, radius, ionic) for symbol, electronegativity, radius, ionic in rows}


def cell_formula(composition: Mapping[str, int]) -> str:
    """{"O": 3, "Ti": 1, "Ca": 1} -> Ca1Ti1O3"""
    ordered = sorted(composition.items(), key=lambda item: ELEMENT_RANK[item[0]])
    return "".join(f"{symbol}{count}" for symbol, count in ordered)


def head(composition: Mapping[str, int], space_group_symbol: str) -> str:
    """The text up to and with the line of the space group: the longest prompt the models were meant for."""
    rows = [" ".join((s, *atom_types()[s])) for s in sorted(composition, key=ELEMENT_RANK.__getitem__)]
    block = BLOCK_HEADER + "".join(f"{row}\n" for row in rows)
    return f"data_{cell_formula(composition)}\n{block}{GROUP_LINE}{space_group_symbol}\n"


def structural_formula(composition: Mapping[str, int]) -> tuple[str, int]:
    """(reduced formula, how many of it the composition holds), as pymatgen writes it: Mg3(PO4)2, O2, Na2O2.

    The last two of three elements or more are a group in brackets where their electronegativities differ by less than
    1.65 and their counts have a common divisor.
    """
    text, units = _reduced(composition)
    if text in _DOUBLED:
        return re.sub(r"([A-Z][a-z]?)", r"\g<1>2", text), units // 2
    return text, units


def _reduced(composition: Mapping[str, int]) -> tuple[str, int]:
    divisor = math.gcd(*composition.values())
    symbols = sorted(composition, key=ELEMENT_RANK.__getitem__)
    group = ""
    if len(symbols) >= 3:
        first, last = (float(atom_types()[symbol][0]) for symbol in symbols[-2:])
        anion, n_anions = _reduced({symbol: composition[symbol] // divisor for symbol in symbols[-2:]})
        if last - first < 1.65 and n_anions > 1:
            group, symbols = f"({anion}){n_anions}", symbols[:-2]
    counts = {symbol: composition[symbol] // divisor for symbol in symbols}
    return "".join(s + (str(n) if n > 1 else "") for s, n in counts.items()) + group, divisor


def full_cif(text: str, provenance: Mapping[str, Any] | None = None) -> str:
    """What any program reads as the crystal that the text means: CrystaLLM's post-processing, and a little more.

    The atom types go, and the operators of the stated group come in, in spglib's default setting, which the training
    texts have (origin choice 1 where there are two). Besides, coordinates of special positions become exact, 0.3333
    one third, and the volume is the cell's. What the text states is kept: the checks compare it with the atoms. Raises
    CIFError.
    """
    match = re.search(rf"^{GROUP_LINE}'?([^'\n]+?)'?$", text, re.MULTILINE)
    if match is None:
        raise CIFError("bad_symmetry", f"no line {GROUP_LINE.strip()}; wanted one, since its operators are to be added")
    try:
        number = space_group_number(match[1])
    except SpaceGroupError as err:
        raise CIFError("bad_symmetry", str(err)) from None
    text = _ATOM_TYPE_BLOCK.sub("", text, count=1)
    if text.count(OPERATORS) != 1:
        raise CIFError("bad_symmetry", f"{text.count(OPERATORS)} loops of the operator 'x, y, z' alone; wanted one")
    text = text.replace(OPERATORS, _operator_loop(number))
    crystal, header = parse_cif(text)
    sites = _SITES.search(text)
    if sites is None:
        raise CIFError("syntax", "the text does not end with the loop of its atoms")
    multiplicities = header.site_multiplicities or header.found_multiplicities
    first_atom = np.cumsum([0, *header.found_multiplicities[:-1]])  # the atoms of a site stand together
    lines = [
        f"{crystal.symbols[atom]} {label} {multiplicity} {x:.8f} {y:.8f} {z:.8f} 1\n"
        for atom, label, multiplicity, (x, y, z) in zip(
            first_atom.tolist(), header.site_labels, multiplicities, crystal.frac_coords[first_atom], strict=True
        )
    ]
    comments = [f"# crystallm.provenance.{key} {json.dumps(value)}\n" for key, value in (provenance or {}).items()]
    volume = f"_cell_volume {crystal.volume_ang3:.8f}\n"
    before = re.sub(r"^_cell_volume .*\n", volume, text[: sites.start()], flags=re.MULTILINE)
    return "".join([*comments, before, SITE_HEADER, *lines])


@functools.cache
def _operator_loop(number: int) -> str:
    """The operators of a group about spglib's default origin."""
    import gemmi

    group = space_group(number)
    shift = group.default_origin_shift  # ours lies there
    lines = []
    for k, (rotation, translation) in enumerate(zip(group.rotations, group.translations, strict=True), start=1):
        operator = gemmi.Op()
        operator.rot = (gemmi.Op.DEN * rotation).tolist()
        operator.tran = np.rint(gemmi.Op.DEN * ((translation + rotation @ shift - shift) % 1)).astype(int).tolist()
        lines.append(f"{k} '{operator.wrap().triplet().replace(',', ', ')}'\n")
    return OPERATORS.partition("1 '")[0] + "".join(lines)
