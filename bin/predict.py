"""Predict properties of crystals:  python bin/predict.py my_cifs/ more.parquet --out predictions.csv

PATHs are CIFs, folders of them, POSCAR or extxyz files, tables with a CIF column, archives. A value is printed with the
mean absolute error to be expected of it. What cannot be read stays in the table, with the reason.
"""

from __future__ import annotations

import argparse
import sys

from crystallm.rank import predict_paths

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--model", help="checkpoint of a predictor; left out: the bundled one")
    parser.add_argument("--out", help="table of the predictions, .csv or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace that table if it is there")
    parser.add_argument("--cif-column", default="cif", help="column of tables that holds the CIF text")
    parser.add_argument("--id-column", help="by default material_id, id, ..., else the row's number")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, help="processes that read and describe; one a core by default")
    try:
        n_predicted, n_read = predict_paths(**vars(parser.parse_args()))
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    if not n_predicted:
        sys.exit(f"predict: none of {n_read} predicted")
