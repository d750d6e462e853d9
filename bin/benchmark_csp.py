"""Crystal structure prediction:  python bin/benchmark_csp.py corpus.parquet --where "split == 'val'" --num 20

For each row the model is told the reduced formula and the number of atoms in the given cell, and draws NUM structures.
Prints shares of finished and valid samples, match rate and RMSE of the first sample and of the best of NUM (pymatgen's
StructureMatcher, stol 0.5, angle_tol 10, ltol 0.3) with 95 % bootstrap intervals, and nats per structure, as JSON.
"""

from __future__ import annotations

import argparse
import json

from crystallm.pipeline import CSPConfig, benchmark_csp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="parquet or CSV with a column `cif`")
    parser.add_argument("--where", help="rows to take, as a pandas query: \"split == 'val' and in_complete_block\"")
    parser.add_argument("--limit", type=int, help="the first rows of these")
    parser.add_argument("--num", type=int, default=20, help="samples for each row")
    parser.add_argument("--formula-only", action="store_true", help="do not tell the number of atoms")
    parser.add_argument("--restarts", type=int, default=20, help="dead ends drawn again before a sample is given up")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="checkpoint folder; left out: the bundled model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="processes for checks and matching; one a core by default")
    parser.add_argument("--out", help="parquet file for all samples")
    print(json.dumps(benchmark_csp(CSPConfig(**vars(parser.parse_args()))), indent=2))


if __name__ == "__main__":
    main()
