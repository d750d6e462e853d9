"""Log-likelihood and perplexity of any CIF:  python bin/score_cifs.py my_cifs/ --out scores.csv

A path is a folder, a CIF, a parquet, CSV or JSON-lines table with a column `cif`, or a .tar, .tar.gz or .zip of these.
Prints the likeliest, with nats for the whole structure and for what follows the formula, and why others have no score;
FILE gets a row for every structure.
"""

from __future__ import annotations

import argparse
import os
import sys

from crystallm.output import check_output
from crystallm.sample.score import ScoreConfig, score_files, score_table, write_scores


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--given-formula", action="store_true", help="perplexity and rank of what follows the formula")
    parser.add_argument("--out", metavar="FILE", help=".csv or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--show", type=int, default=20, help="lines of the table; 0: none (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="the first records only")
    parser.add_argument("--model", help="checkpoint folder; left out: the bundled model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--cif-column", default="cif", help="of tables")
    parser.add_argument("--workers", type=int, help="processes that read CIFs (default: one a core; 0: this one)")
    return parser.parse_args()


if __name__ == "__main__":
    args = vars(parse_arguments())
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it prints what find_symmetry reports anyway
    out, show, overwrite = args.pop("out"), args.pop("show"), args.pop("overwrite")
    if out and not out.endswith((".csv", ".parquet")):
        sys.exit(f"score_cifs: --out {out}: wanted .csv or .parquet")
    try:
        if out:
            check_output(out, args["paths"], overwrite)
        scores = score_files(ScoreConfig(**args | {"paths": tuple(args["paths"])}))
    except (ValueError, ImportError, OSError) as err:
        sys.exit(f"score_cifs: {err}")
    print(score_table(scores, show))
    if out:
        write_scores(out, scores)
        print(f"{len(scores)} rows written to {out}")
    if not any(one.rank for one in scores):
        sys.exit(f"score_cifs: none of {len(scores)} scored")
