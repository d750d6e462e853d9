"""Generate resources/elements.npz, what is known of each element:  python bin/make_element_table.py

Run by maintainers only. Values come from pymatgen (Pauling electronegativities, Shannon radii, CRC handbook), covalent
radii from Cordero et al. 2008 (crystallm.geometry). nan where nothing is known.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from pymatgen.core import Element

from crystallm.geometry import covalent_radii
from crystallm.resources import project_root
from tokenizer.elements import SYMBOLS

PROPERTIES = {
    "electronegativity": "X",
    "mendeleev_number": "mendeleev_no",
    "molar_volume_cm3": "molar_volume",
    "ionic_radius_ang": "average_ionic_radius",  # 0: none known
    "cationic_radius_ang": "average_cationic_radius",
    "anionic_radius_ang": "average_anionic_radius",
    "van_der_waals_radius_ang": "van_der_waals_radius",
    "ionization_energy_ev": "ionization_energy",
    "highest_oxidation_state": "max_oxidation_state",
    "lowest_oxidation_state": "min_oxidation_state",
    "melting_point_k": "melting_point",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=project_root() / "resources/elements.npz")
    output = parser.parse_args().out
    warnings.filterwarnings("ignore", message="No data available|No Pauling electronegativity")  # nan says the same
    elements = [Element(symbol) for symbol in SYMBOLS]
    columns = {name: [getattr(e, attribute) for e in elements] for name, attribute in PROPERTIES.items()}
    table = {name: np.array([np.nan if v is None else float(v) for v in column]) for name, column in columns.items()}
    table["covalent_radius_ang"] = covalent_radii()[1:]
    place = {"period": [e.row for e in elements], "group": [e.group for e in elements]}
    table |= {name: np.array(column, dtype=np.int64) for name, column in place.items()}
    table["block"] = np.array(["spdf".index(e.block) for e in elements])
    np.savez_compressed(output, **table)  # type: ignore[arg-type]
    for name, column in table.items():
        print(f"{name}: {int(np.isfinite(column).sum())} elements, {np.nanmin(column):g} to {np.nanmax(column):g}")


if __name__ == "__main__":
    main()
