"""Write the demo corpus: python bin/make_demo_corpus.py [--out resources/demo/demo.parquet]

Reads resources/demo/prototypes.csv (space group and sites of each prototype) and compounds.csv (elements, cell and
free parameters of each compound), builds every crystal in its conventional cell and writes one row with a `cif` column.
A compound whose symmetry, as spglib finds it, is not its prototype's stops the run.
"""

from __future__ import annotations

import argparse
import csv
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystallm.resources import resource_path

TERM = re.compile(r"([+-]?)(\d+(?:\.\d+)?(?:/\d+)?)?([a-z])?")


def coordinate(expression: str, parameters: dict[str, float]) -> float:
    """Value of `1/2`, `0.25`, `x`, `-x`, `2x` or `x+1/2`."""
    total, end = 0.0, 0
    for match in TERM.finditer(expression):
        sign, number, name = match.groups()
        if match.start() != end or not match.group():
            break
        end = match.end()
        if name and name not in parameters:
            raise ValueError(f"coordinate {expression!r} needs a value of {name!r}; given are {sorted(parameters)}")
        total += float(Fraction(sign + (number or "1"))) * (parameters[name] if name else 1.0)
    if end != len(expression):
        raise ValueError(f"cannot read the coordinate {expression!r} from character {end} on")
    return total


def read_parameters(text: str) -> dict[str, float]:
    """`x=0.3 z=0.1` or `x=0.3, z=0.1` -> {"x": 0.3, "z": 0.1}"""
    return {name: float(value) for name, value in (item.split("=") for item in text.replace(",", " ").split())}


def lattice(system: str, a: float, b: float | None, c: float | None, beta: float | None) -> Lattice:
    """The cell that a crystal system leaves after its ties; hexagonal axes for trigonal groups."""
    if system == "cubic":
        return Lattice.cubic(a)
    assert c is not None, f"a {system} cell needs c"
    if system == "tetragonal":
        return Lattice.tetragonal(a, c)
    if system in ("trigonal", "hexagonal"):
        return Lattice.hexagonal(a, c)
    assert b is not None, f"a {system} cell needs b"
    return Lattice.from_parameters(a, b, c, 90, beta or 90, 90)


def build(compound: dict[str, str], prototype: dict[str, str]) -> tuple[Structure, int]:
    """The conventional cell, and the number of the space group it has to have."""
    group = gemmi.find_spacegroup_by_name(prototype["space_group"])
    a, b, c, beta = (float(compound[key]) if compound[key] else None for key in ("a", "b", "c", "beta"))
    assert a is not None, compound
    parameters = read_parameters(prototype["defaults"]) | read_parameters(compound["parameters"])
    elements = dict(zip("ABCD", compound["elements"].split(), strict=False))
    species, coordinates = [], []
    for site in prototype["sites"].split(";"):
        label, *expressions = site.split()
        point = [coordinate(expression, parameters) for expression in expressions]
        images: list[np.ndarray] = []
        for operation in group.operations():
            image = np.array(operation.apply_to_xyz(point)) % 1.0
            if all(np.abs((image - other) - np.rint(image - other)).max() > 1e-4 for other in images):
                images.append(image)
        species += [elements[label]] * len(images)
        coordinates += images
    crystal = Structure(lattice(group.crystal_system_str(), a, b, c, beta), species, coordinates, to_unit_cell=True)
    return crystal, group.number


def make_corpus(compounds: Path, prototypes: Path) -> list[dict[str, Any]]:
    """One row a compound: id, formula, prototype, space group, source, cif."""
    with prototypes.open(encoding="utf-8", newline="") as file:
        by_name = {row["prototype"]: row for row in csv.DictReader(file)}
    rows: list[dict[str, Any]] = []
    with compounds.open(encoding="utf-8", newline="") as file:
        for compound in csv.DictReader(file):
            crystal, number = build(compound, by_name[compound["prototype"]])
            found = SpacegroupAnalyzer(crystal, symprec=0.1).get_space_group_number()
            if found != number:
                raise ValueError(
                    f"{compound['prototype']} {compound['elements']}: group {found} found, {number} wanted"
                )
            rows.append(
                {
                    "id": f"demo-{compound['prototype']}-{crystal.composition.reduced_formula}",
                    "formula": crystal.composition.reduced_formula,
                    "prototype": compound["prototype"],
                    "space_group_number": number,
                    "source": compound["source"],
                    "cif": str(CifWriter(crystal)),
                }
            )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("resources/demo/demo.parquet"))
    arguments = parser.parse_args()
    demo = resource_path("resources/demo")
    rows = make_corpus(demo / "compounds.csv", demo / "prototypes.csv")
    pq.write_table(pa.Table.from_pylist(rows), arguments.out, compression="zstd")
    print(f"{len(rows)} crystals, {len({row['prototype'] for row in rows})} prototypes -> {arguments.out}")
