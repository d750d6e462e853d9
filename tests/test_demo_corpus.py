"""The demo corpus against what is known without it: handbook densities, bond lengths, spglib's groups."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

# g/cm3, CRC Handbook of Chemistry and Physics, "Physical constants of inorganic compounds" and of minerals.
DENSITIES = {
    ("fcc", "Cu"): 8.96, ("fcc", "Al"): 2.70, ("fcc", "Au"): 19.3, ("bcc", "W"): 19.3, ("bcc", "Fe"): 7.87,
    ("hcp", "Mg"): 1.74, ("hcp", "Ti"): 4.51, ("diamond", "Si"): 2.33, ("diamond", "C"): 3.51, ("graphite", "C"): 2.26,
    ("beta_tin", "Sn"): 7.29, ("arsenic", "Bi"): 9.79, ("rock_salt", "NaCl"): 2.17, ("rock_salt", "MgO"): 3.6,
    ("rock_salt", "PbS"): 7.60, ("cscl", "CsCl"): 3.99, ("zincblende", "GaAs"): 5.32, ("wurtzite", "ZnO"): 5.6,
    ("fluorite", "CaF2"): 3.18, ("fluorite", "UO2"): 10.97, ("rutile", "TiO2"): 4.23, ("anatase", "TiO2"): 3.90,
    ("brookite", "TiO2"): 4.14, ("corundum", "Al2O3"): 3.98, ("corundum", "Fe2O3"): 5.25, ("calcite", "CaCO3"): 2.71,
    ("alpha_quartz", "SiO2"): 2.65, ("alpha_cristobalite", "SiO2"): 2.33, ("pyrite", "FeS2"): 5.02,
    ("marcasite", "FeS2"): 4.89, ("cuprite", "Cu2O"): 6.0, ("tenorite", "CuO"): 6.48, ("cinnabar", "HgS"): 8.17,
    ("mos2", "MoS2"): 5.06, ("cdi2", "PbI2"): 6.16, ("zircon", "ZrSiO4"): 4.6, ("scheelite", "CaWO4"): 6.06,
    ("spinel", "MgAl2O4"): 3.55, ("binary_spinel", "Fe3O4"): 5.17, ("perovskite", "SrTiO3"): 5.1,
    ("baddeleyite", "ZrO2"): 5.68, ("vanadium_pentoxide", "V2O5"): 3.35, ("molybdenum_trioxide", "MoO3"): 4.70,
    ("tungsten_carbide", "WC"): 15.6, ("bismuth_telluride", "Bi2Te3"): 7.74, ("cementite", "Fe3C"): 7.69,
}  # fmt: skip

# Å, nearest neighbours in International Tables, vol. C, or by hand from the cell.
BONDS = {
    ("brucite", "Ca(HO)2"): ("H", "O", 0.95),
    ("diamond", "C"): ("C", "C", 1.545),
    ("rock_salt", "NaCl"): ("Na", "Cl", 2.82),
    ("rutile", "TiO2"): ("Ti", "O", 1.95),
    ("alpha_quartz", "SiO2"): ("Si", "O", 1.61),
    ("pyrite", "FeS2"): ("S", "S", 2.17),
    ("calcite", "CaCO3"): ("C", "O", 1.28),
    ("scheelite", "CaWO4"): ("W", "O", 1.785),
    ("zircon", "ZrSiO4"): ("Si", "O", 1.62),
    ("olivine", "LiFePO4"): ("P", "O", 1.54),
    ("silicon_nitride", "Si3N4"): ("Si", "N", 1.73),
    ("ucl3", "LaCl3"): ("La", "Cl", 2.95),
    ("bii3", "BiI3"): ("Bi", "I", 3.07),
    ("k2ptcl6", "K2PtCl6"): ("Pt", "Cl", 2.33),
    ("skutterudite", "CoSb3"): ("Co", "Sb", 2.53),
    ("bixbyite", "Y2O3"): ("Y", "O", 2.24),
    ("garnet", "Y3Al5O12"): ("Al", "O", 1.76),
    ("gadolinium_ferrite", "CaTiO3"): ("Ti", "O", 1.95),
}


@pytest.fixture(scope="module")
def corpus(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "resources/demo/demo.parquet").set_index(["prototype", "formula"], drop=False)


@pytest.fixture(scope="module")
def script(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "bin/make_demo_corpus.py"))


def structure(corpus: pd.DataFrame, key: tuple[str, str]) -> Structure:
    return Structure.from_str(corpus.loc[key, "cif"], fmt="cif")


def test_size_and_sources(root: Path, corpus: pd.DataFrame) -> None:
    folder = root / "resources/demo"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert len(corpus) >= 300
    assert corpus.id.is_unique
    assert corpus.index.is_unique
    readme = (folder / "README.md").read_text(encoding="utf-8")
    named = {
        key.strip() for line in readme.splitlines() if line.startswith("| ") for key in line.split("|")[1].split(",")
    }
    assert set(corpus.source) <= named
    assert f"{len(corpus):,} well-known" in readme
    assert f"{corpus.prototype.nunique()} prototypes" in readme


@pytest.mark.parametrize("key", DENSITIES, ids="-".join)
def test_density_is_the_handbook_s(corpus: pd.DataFrame, key: tuple[str, str]) -> None:
    assert structure(corpus, key).density == pytest.approx(DENSITIES[key], rel=0.03)


@pytest.mark.parametrize("key", BONDS, ids="-".join)
def test_bond_length_is_the_known_one(corpus: pd.DataFrame, key: tuple[str, str]) -> None:
    first, second, length = BONDS[key]
    crystal = structure(corpus, key)
    sites = [site for site in crystal if site.specie.symbol == first]
    near = [n for site in sites for n in crystal.get_neighbors(site, length + 1) if n.specie.symbol == second]
    assert min(n.nn_distance for n in near) == pytest.approx(length, abs=0.04)


def check_rows(rows: pd.DataFrame) -> None:
    for row in rows.itertuples():
        crystal = Structure.from_str(row.cif, fmt="cif")
        groups = [SpacegroupAnalyzer(crystal, symprec=symprec).get_space_group_number() for symprec in (0.1, 0.01)]
        assert groups == [row.space_group_number] * 2, row.id
        # Atoms closer than half the sum of their radii are a wrong site, not a bond.
        distances = crystal.distance_matrix + 99 * np.eye(len(crystal))
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        radii = sum(0.3 if crystal[k].specie.symbol == "H" else crystal[k].specie.atomic_radius or 1.0 for k in (i, j))
        assert distances[i, j] > 0.5 * radii, (
            f"{row.id}: {crystal[i].specie}-{crystal[j].specie} {distances[i, j]:.2f} Å"
        )


def test_one_crystal_of_each_prototype_has_its_group(corpus: pd.DataFrame) -> None:
    check_rows(corpus.reset_index(drop=True).groupby("prototype", as_index=False).first())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
def test_every_crystal_has_its_group_and_the_file_is_the_tables(root: Path, corpus: pd.DataFrame, script: dict) -> None:
    check_rows(corpus)
    folder = root / "resources/demo"
    made = pd.DataFrame(script["make_corpus"](folder / "compounds.csv", folder / "prototypes.csv"))
    pd.testing.assert_frame_equal(made, corpus.reset_index(drop=True), check_dtype=False)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("0", 0), ("1/2", 0.5), ("0.25", 0.25), ("x", 0.1), ("-x", -0.1), ("2x", 0.2), ("x+1/2", 0.6), ("1/4-2x", 0.05)],
)
def test_coordinate(script: dict, expression: str, value: float) -> None:
    assert script["coordinate"](expression, {"x": 0.1}) == pytest.approx(value)


def test_a_bad_table_is_refused(root: Path, tmp_path: Path, script: dict) -> None:
    with pytest.raises(ValueError, match="cannot read the coordinate 'x\\*2' from character 1"):
        script["coordinate"]("x*2", {"x": 0.1})
    with pytest.raises(ValueError, match=r"needs a value of 'u'; given are \['x'\]"):
        script["coordinate"]("u", {"x": 0.1})
    table = tmp_path / "compounds.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["elements", "prototype", "a", "b", "c", "beta", "parameters", "source"])
        writer.writerow(["Ti O", "rutile", "4.594", "", "2.959", "", "u=0.0", "W1"])  # O on top of Ti
    with pytest.raises(ValueError, match=r"rutile Ti O: group \d+ found, 136 wanted"):
        script["make_corpus"](table, root / "resources/demo/prototypes.csv")
