"""A corpus → canonical records and token shards:  python bin/prepare_data.py my_cifs/ more.parquet --out data/mine

PATHs are folders, CIFs, POSCAR or extxyz files, tables with a CIF column (parquet, CSV, JSONL), archives (tar, zip).
Run again after an interruption, it goes on where it stopped. What was kept and what was rejected, and why, stands in
OUT/records.parquet and OUT/rejected.parquet; the shards beside them are what bin/train.py reads. The hash of a formula
decides on its split, so that it is the same in every preparation; the shares that small sets get deviate from those
asked for.
"""

from __future__ import annotations

import argparse

from crystallm.config import ConfigError, from_dict
from crystallm.data.prepare import PrepareConfig, PrepareError, prepare
from crystallm.data.tables import with_default_properties


def parse_arguments() -> PrepareConfig:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--out", required=True, help="folder for the result")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="PATH", help="keep every formula of these out")
    parser.add_argument("--cif-column", default="cif", help="column of tables that holds the CIF text")
    parser.add_argument("--id-column", help="by default material_id, id, mp_id, jid or name, else the row's number")
    parser.add_argument("--split-column", help="column with train, val, test; without it the formula's hash decides")
    parser.add_argument("--property", action="append", default=[], metavar="COLUMN=NAME", help="e.g. gap=band_gap_ev")
    parser.add_argument(
        "--val-share", type=float, default=0.05, help="of the formulas (%(default)s); of small sets it can be far off"
    )
    parser.add_argument("--test-share", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--max-sites", type=int, help="atoms in the primitive cell")
    parser.add_argument("--limit", type=int, help="read this many rows only")
    parser.add_argument("--check-round-trip", action="store_true", help="the text must expand to a matching structure")
    parser.add_argument(
        "--no-match", dest="match_structures", action="store_false", help="only equal texts are duplicates"
    )
    parser.add_argument("--keep-duplicates", action="store_true", help="reject none, however often it stands there")
    parser.add_argument("--overwrite", action="store_true", help="replace what other options made of this folder")
    parser.add_argument("--workers", type=int, help="processes; one a core by default, 0 for none")
    options = vars(parser.parse_args())
    added = options.pop("property")
    if wrong := [text for text in added if text.count("=") != 1]:
        parser.error(f"--property wants COLUMN=NAME, got {wrong[0]!r}")
    asked = dict(text.split("=") for text in added)
    options |= {"properties": with_default_properties(asked), "required": list(asked.values())}
    try:
        return from_dict(PrepareConfig, options)
    except ConfigError as err:
        parser.exit(2, f"{parser.prog}: {err}\n")


if __name__ == "__main__":
    config = parse_arguments()
    try:
        result = prepare(config)
    except (PrepareError, OSError) as err:
        raise SystemExit(str(err)) from None
    print(f"{result}\nwritten to {config.out}")
    if result.failure:
        raise SystemExit(f"prepare_data: {result.failure}")
