#!/usr/bin/env python
"""Validity of CIFs by check, uniqueness and novelty, with the rates of a reference set beside them.

    python bin/evaluate_cifs.py generated/
    python bin/evaluate_cifs.py generated.tar.gz --reference test.parquet --out report.parquet --pictures pictures/
    python bin/evaluate_cifs.py generated.parquet --rules crystallm --json > rates.json

A path is a folder, a CIF, a parquet, CSV or JSON-lines table with a column `cif`, or a .tar, .tar.gz or .zip of these.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from crystallm.checks.rules import CHECKS, RULE_SETS
from crystallm.metrics.evaluate import EvaluateConfig, check_report, evaluate, write_report
from crystallm.output import check_output
from crystallm.report.pictures import picture_paths, save_pictures
from crystallm.report.tables import evaluation_table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--reference", nargs="+", default=[], metavar="PATH", help="real crystals to compare with")
    parser.add_argument("--rules", choices=list(RULE_SETS), default="default")
    parser.add_argument(
        "--reject-on", nargs="+", default=[], choices=list(CHECKS), metavar="CHECK", help="further checks"
    )
    parser.add_argument("--out", metavar="FILE", help="parquet file with a row for each record")
    parser.add_argument("--pictures", metavar="FOLDER", help="rates and histograms as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace that file and those pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--cif-column", default="cif", help="of tables (default: cif)")
    parser.add_argument("--no-compare", action="store_true", help="leave out uniqueness and novelty")
    parser.add_argument("--workers", type=int, help="processes (default: one a core; 0: this one)")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it prints what find_symmetry reports anyway
    try:
        config = EvaluateConfig(
            tuple(args.paths),
            tuple(args.reference),
            args.rules,
            tuple(args.reject_on),
            compare=not args.no_compare,
            cif_column=args.cif_column,
            workers=args.workers,
        )
        if args.out:
            check_report(args.out, (*args.paths, *args.reference), args.overwrite)
        for picture in picture_paths(args.pictures) if args.pictures else ():
            check_output(picture, overwrite=args.overwrite)
        evaluation = evaluate(config)
    except (ImportError, ValueError, OSError) as err:
        sys.exit(f"evaluate_cifs: {err}")
    if args.out:
        write_report(evaluation, args.out)
    if args.pictures:
        save_pictures(evaluation, args.pictures)
    print(json.dumps(evaluation.to_dict(), indent=2) if args.json else evaluation_table(evaluation))
    if not evaluation.generated.rates["parse"]:
        sys.exit(f"evaluate_cifs: none of {evaluation.generated.counts.n_read} could be read")
