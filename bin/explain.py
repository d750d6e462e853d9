"""Why a predicted value is what it is:  python bin/explain.py my.cif --target formation_energy --out why/

PATHs are CIFs, folders of them, tables with a CIF column, archives. For each crystal: what structure and text
contribute, what each sentence of the description and each atom does to the value when it is left out, and, with a
predictor of cross-attention, which words atoms look at. Writes pictures in a folder for each crystal, explanations.csv
and attention.csv, and prints a summary. What cannot be read stays in the table, with the reason.
"""

from __future__ import annotations

import argparse
import sys

from crystallm.report.explanations import explain_paths

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--model", help="checkpoint of a predictor; left out: the bundled one")
    parser.add_argument("--target", help="property, with or without its unit; left out: the predictor's first")
    parser.add_argument("--out", required=True, help="folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    parser.add_argument("--limit", type=int, default=10, help="crystals at most (default 10)")
    parser.add_argument("--cif-column", default="cif", help="column of tables that holds the CIF text")
    parser.add_argument("--id-column", help="by default material_id, id, ..., else the row's number")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps")
    try:
        n_explained, n_read = explain_paths(**vars(parser.parse_args()))
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    if not n_explained:
        sys.exit(f"explain: none of {n_read} explained")
