"""Bonds against pymatgen's CrystalNN, atom by atom; CrystaLLM's verdicts against a plain version of its rules."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.local_env import CrystalNN
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystallm.checks.bonds import BondError, check_bonds, crystal_nn, voronoi_faces
from crystallm.checks.filter import FilterConfig, filter_record
from crystallm.crystal import Crystal
from crystallm.interop import from_structure, to_structure
from crystallm.records import CIFRecord

pytestmark = pytest.mark.filterwarnings("ignore")
MATERIALS_PROJECT = Path(__file__).resolve().parents[3] / "shared/data/materials_project.parquet"


def structures() -> dict[str, Structure]:
    """Dense, open, layered, molecular, one atom, skewed, distorted, random."""
    rng = np.random.default_rng(5)
    cubic = Lattice.cubic
    found = {
        "NaCl": Structure.from_spacegroup("Fm-3m", cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        "Po": Structure(cubic(3.36), ["Po"], [[0, 0, 0]]),
        "Cu, primitive": Structure(Lattice([[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]]), ["Cu"], [[0, 0, 0]]),
        "W": Structure.from_spacegroup("Im-3m", cubic(3.165), ["W"], [[0, 0, 0]]),
        "diamond": Structure.from_spacegroup("Fd-3m", cubic(3.567), ["C"], [[0, 0, 0]]),
        "SrTiO3": Structure.from_spacegroup(
            "Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
        ),
        "graphite": Structure.from_spacegroup(
            "P6_3/mmc", Lattice.hexagonal(2.46, 6.7), ["C", "C"], [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25]]
        ),
        "H2 far apart": Structure(Lattice.orthorhombic(6, 7, 8), ["H", "H"], [[0, 0, 0], [0, 0, 0.74 / 8]]),
        "one atom far from its images": Structure(cubic(11.0), ["Na"], [[0, 0, 0]]),
    }
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    found["rutile"] = rutile
    found["rutile, skewed cell"] = rutile.copy() * [[1, 2, 0], [0, 1, 3], [0, 0, 1]]
    found["rutile, distorted"] = rutile.copy().perturb(0.3, seed=1) or rutile
    for k in range(4):
        symbols = [str(s) for s in rng.choice(["Li", "Fe", "O", "H", "S", "Cs"], 5)]
        lattice = Lattice.from_parameters(*rng.uniform(4.5, 6.5, 3), *rng.uniform(70, 110, 3))
        found[f"random {k}"] = Structure(lattice, symbols, rng.random((5, 3)))
    return found


STRUCTURES = structures()


def plain_bonds(structure: Structure) -> list[tuple[int, int, float]]:
    nn = CrystalNN()
    return sorted(
        (i, info["site_index"], round(float(np.linalg.norm(structure[i].coords - info["site"].coords)), 4))
        for i in range(len(structure))
        for info in nn.get_nn_info(structure, i)
    )


@pytest.mark.parametrize("name", STRUCTURES)
def test_neighbours_are_those_of_pymatgens_crystal_nn(name):
    structure = STRUCTURES[name]
    site, neighbour, length = crystal_nn(from_structure(structure))
    ours = sorted(zip(site.tolist(), neighbour.tolist(), np.round(length, 4).tolist(), strict=True))
    plain = plain_bonds(structure)
    assert [bond[:2] for bond in ours] == [bond[:2] for bond in plain]
    np.testing.assert_allclose([bond[2] for bond in ours], [bond[2] for bond in plain], atol=2e-4)


def test_coordination_numbers_of_textbook_structures():
    def coordination(name):
        return np.bincount(crystal_nn(from_structure(STRUCTURES[name]))[0]).tolist()

    assert coordination("NaCl") == [6] * 8
    assert coordination("diamond") == [4] * 8
    assert coordination("Cu, primitive") == [12]
    assert coordination("rutile") == [6, 6, 3, 3, 3, 3]
    assert coordination("graphite") == [3] * 4


def test_voronoi_faces_tile_space():
    """The cells' volumes, a third of area times half the distance each, add up to that of the crystal; angles to 4π."""
    for name in ("rutile, distorted", "SrTiO3", "NaCl"):
        crystal = from_structure(STRUCTURES[name])
        faces = voronoi_faces(crystal)
        assert (faces.area * faces.distance / 6).sum() == pytest.approx(crystal.volume_ang3)
        np.testing.assert_allclose(np.bincount(faces.site, faces.solid_angle), 4 * math.pi, rtol=1e-9)


def test_two_atoms_at_one_place_have_no_bonds():
    crystal = Crystal(np.eye(3) * 4, np.zeros((2, 3)), np.array([11, 17]))
    with pytest.raises(BondError, match="one place"):
        crystal_nn(crystal)
    assert check_bonds(CIFRecord("x", "", crystal=crystal)) == "two atoms at one place"


def test_an_absurd_density_is_refused_before_the_search():
    crystal = Crystal(np.eye(3) * 0.1, np.zeros((1, 3)), np.array([1]))
    assert "too many for a neighbour search" in (check_bonds(CIFRecord("x", "", crystal=crystal)) or "")


def test_elements_without_radii_fail_with_their_names():
    xenon_fluoride = Structure(
        Lattice.tetragonal(4.32, 6.99), ["Xe", "F", "F"], [[0, 0, 0], [0, 0, 0.283], [0, 0, 0.717]]
    )
    record = CIFRecord("x", "", crystal=from_structure(xenon_fluoride))
    assert check_bonds(record) == "no radii are known for the bond Xe-F"


# ---------------------------------------------------------------- CrystaLLM's rules, written plainly


def plain_crystallm_verdict(cif: str) -> bool:
    """The rules as described in the paper and its code, each straight from the text; any exception means invalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(
                rule(cif) for rule in (plain_sensible, plain_formula, plain_multiplicity, plain_bond_rule, plain_group)
            )
    except Exception:
        return False


def plain_block(cif: str) -> dict:
    return next(iter(CifParser.from_str(cif).as_dict().values()))


def plain_sensible(cif: str) -> bool:
    lengths = [float(x) for x in re.findall(r"_cell_length_[abc]\s+([\d.]+)", cif)]
    angles = [float(x) for x in re.findall(r"_cell_angle_\w+\s+([\d.]+)", cif)]
    return all(0.5 <= x <= 1000 for x in lengths) and all(10 <= x <= 170 for x in angles)


def plain_formula(cif: str) -> bool:
    block = plain_block(cif)
    formulas = [re.search(r"data_(\S+)", cif)[1], block["_chemical_formula_sum"], block["_chemical_formula_structural"]]
    return len({Composition(formula).reduced_formula for formula in formulas}) == 1


def plain_multiplicity(cif: str) -> bool:
    block = plain_block(cif)
    counts: dict[str, float] = {}
    for symbol, n in zip(block["_atom_site_type_symbol"], block["_atom_site_symmetry_multiplicity"], strict=True):
        counts[symbol] = counts.get(symbol, 0) + int(n)
    return counts == Composition(block["_chemical_formula_sum"]).as_dict()


def plain_bond_rule(cif: str) -> bool:
    structure = Structure.from_str(cif, fmt="cif")
    nn = CrystalNN()
    for i, site in enumerate(structure):
        for info in nn.get_nn_info(structure, i):
            if info["site_index"] == i:
                continue
            one, other = site.specie, info["site"].specie
            if abs(one.X - other.X) >= 1.7:
                cation, anion = sorted((one, other), key=lambda element: element.X)
                expected = cation.average_cationic_radius + anion.average_anionic_radius
            else:
                expected = one.atomic_radius + other.atomic_radius
            ratio = site.distance(info["site"]) / expected
            good = ratio < 2.5 if "H" in (one.symbol, other.symbol) else 0.68 < ratio < 1.32
            if not good:
                return False
    return True


def plain_group(cif: str) -> bool:
    structure = Structure.from_str(cif, fmt="cif")
    found = SpacegroupAnalyzer(structure, symprec=0.1).get_space_group_symbol()
    return plain_block(cif)["_symmetry_space_group_name_H-M"].strip() == found


def our_crystallm_verdict(cif: str) -> bool:
    return filter_record(CIFRecord("x", cif), FilterConfig("crystallm").rejecting()).rejected_by is None


def spoiled(cif: str) -> list[str]:
    """One statement changed in each; some changes leave the file valid."""
    return [
        cif,
        re.sub(r"data_\S+", "data_KBr", cif),
        re.sub(r"(_chemical_formula_structural\s+)\S+", r"\1KBr", cif),
        re.sub(r"_chemical_formula_structural.*\n", "", cif),
        re.sub(r"(_chemical_formula_sum\s+)(\S.*)", r"\1'K4 Br4'", cif),
        re.sub(r"(_symmetry_space_group_name_H-M\s+)\S+", r"\1P-1", cif),
        re.sub(r"(_cell_length_a\s+)\S+", r"\g<1>0.3", cif),
        re.sub(r"(_cell_length_[abc]\s+)(\S+)", lambda m: f"{m[1]}{1.5 * float(m[2]):.6f}", cif),
        re.sub(r"(_cell_length_[abc]\s+)(\S+)", lambda m: f"{m[1]}{0.6 * float(m[2]):.6f}", cif),
        re.sub(r"(\n +[A-Z][a-z]? +[A-Z][a-z]?0 +)(\d+)", r"\g<1>7", cif),
        cif.replace("_cell_angle_beta", "_cell_angle_betta"),
        cif[: len(cif) // 2],
    ]


@pytest.mark.parametrize("name", ["NaCl", "diamond", "SrTiO3", "rutile", "graphite", "W"])
def test_verdicts_are_those_of_the_plain_rules(name):
    written = str(CifWriter(STRUCTURES[name], symprec=0.1))
    verdicts = [our_crystallm_verdict(cif) for cif in spoiled(written)]
    assert verdicts == [plain_crystallm_verdict(cif) for cif in spoiled(written)]
    assert verdicts[0] and not all(verdicts)


def test_a_one_atom_cell_has_no_bond_that_could_be_bad():
    """CrystaLLM divides by the number of bonds and fails here; the rule as it is worded has nothing to object to."""
    assert our_crystallm_verdict(str(CifWriter(STRUCTURES["Po"], symprec=0.1)))


@pytest.mark.slow
@pytest.mark.skipif(not MATERIALS_PROJECT.exists(), reason=f"{MATERIALS_PROJECT} is not there")
def test_verdicts_on_materials_project_rows():
    import pandas as pd

    rows = pd.read_parquet(MATERIALS_PROJECT, columns=["cif", "n_sites"])
    rows = rows[rows.n_sites <= 30].sample(150, random_state=2)
    for text in rows.cif:
        structure = Structure.from_str(text, fmt="cif")
        cif = str(CifWriter(structure, symprec=0.1))
        assert our_crystallm_verdict(cif) == plain_crystallm_verdict(cif), cif


def test_bonds_do_not_depend_on_the_description():
    structure = STRUCTURES["rutile, distorted"]
    crystal = from_structure(structure)
    order = np.array([3, 1, 5, 0, 4, 2])
    moved = Crystal(crystal.lattice, crystal.frac_coords[order] + [0.3, 0.7, 0.1], crystal.atomic_numbers[order])
    doubled = from_structure(to_structure(crystal) * [2, 1, 1])

    def bonds_by_element(c, share):
        site, neighbour, length = crystal_nn(c)
        z = c.atomic_numbers
        return sorted(
            (int(z[i]), int(z[j]), round(float(d), 5)) for i, j, d in zip(site, neighbour, length, strict=True)
        )[::share]

    assert bonds_by_element(moved, 1) == bonds_by_element(crystal, 1)
    assert bonds_by_element(doubled, 2) == bonds_by_element(crystal, 1)
