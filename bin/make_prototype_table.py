"""Generate resources/prototypes.json, by which prototypes are recognised:  python bin/make_prototype_table.py

Run by maintainers only, after a change of resources/demo/ or of how crystallm/properties/description.py counts
neighbours. A prototype is known by its space group, the occupied Wyckoff positions and the coordination numbers that
its compounds in the demo corpus have. A prototype may be occupied by its elements in any order that no other one has.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from crystallm.cif import parse_cif
from crystallm.properties.description import find_prototype_key
from crystallm.resources import resource_path
from crystallm.space_groups import space_group

USUAL_SHARE = 0.7
_FORMULAS = """
CsCl NiAs Ni2In PtS FeSi FeB MnP NaTl CrB CuTi CdI2 MoS2 NbS2 MoSi2 CuAl2 CdCl2 Cu2Sb PbFCl BiF3 BiI3 UCl3 YF3 Ni3Sn
Al3Ti Al3Zr Ni3Ti BaAl4 Ni4Mo CaB6 CaCu5 UB12 Th3P4 Mn5Si3 K2NiF4 Nd2CuO4 K2PtCl6 K2PtCl4 CsNiCl3 ZrCuSiAs ThCr2Si2
CaAl2Si2 NaFeO2
"""
FORMULAS = {formula.lower(): formula for formula in _FORMULAS.split()}  # which the demo corpus writes in small letters
Entry = tuple[str, str]  # occupied positions, coordination numbers


def relabelled(places: str, coordination: str) -> Iterator[Entry]:
    """The entry with its elements in each order."""
    number, *sites = places.split()
    labels = sorted({site[0] for site in sites})
    for order in itertools.permutations(labels):
        new = dict(zip(labels, order, strict=True))
        rows = sorted((new[s[0]] + s[1:], int(n)) for s, n in zip(sites, coordination.split(), strict=True))
        yield " ".join([number, *(site for site, _ in rows)]), " ".join(str(n) for _, n in rows)


def readable(prototype: str) -> str:
    """bif3_alloy -> BiF3 alloy"""
    if prototype.startswith("l1_"):
        return prototype.upper()
    return " ".join(FORMULAS.get(part, part) for part in prototype.split("_"))


def is_fixed(places: str) -> bool:
    """Whether the positions leave no free coordinate, in a cell of which only the size is free."""
    number, *sites = places.split()
    group = space_group(int(number))
    return group.crystal_system == "cubic" and not any(group.position(site[1:]).n_free for site in sites)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=resource_path("resources/demo").parent / "prototypes.json")
    out = parser.parse_args().out
    seen: dict[Entry, Counter[str]] = {}
    for row in pq.read_table(resource_path("resources/demo/demo.parquet"), columns=["prototype", "cif"]).to_pylist():
        key = find_prototype_key(parse_cif(row["cif"])[0])
        assert key is not None, row["prototype"]
        places, coordination = key
        entry = (places, "any" if is_fixed(places) else coordination)
        seen.setdefault(entry, Counter())[readable(row["prototype"])] += 1
    # An intermetallic fluorite such as AuAl2 is an antifluorite by electronegativity: the usual name is taken.
    claimed = {
        entry: {name for name, count in names.items() if count >= USUAL_SHARE * names.total()} or set(names)
        for entry, names in seen.items()
    }
    for (places, coordination), names in seen.items():
        counts = coordination if coordination != "any" else " ".join("0" for _ in places.split()[1:])
        for other, numbers in relabelled(places, counts):
            entry = (other, "any" if coordination == "any" else numbers)
            if entry not in seen:
                claimed.setdefault(entry, set()).update(names)
    table: dict[str, dict[str, str]] = {}
    for (places, coordination), claims in sorted(claimed.items()):
        if len(claims) == 1:
            table.setdefault(places, {})[coordination] = next(iter(claims))
        else:
            print(f"left out, since {' and '.join(sorted(claims))} look alike: {places}, {coordination}")
    out.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    kept = {name for entry in table.values() for name in entry.values()}
    print(f"{out}: {len(kept)} prototypes in {sum(len(entry) for entry in table.values())} entries")


if __name__ == "__main__":
    main()
