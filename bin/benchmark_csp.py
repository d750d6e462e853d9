"""Crystal structure prediction:  python bin/benchmark_csp.py --dataset mp20 --split val --data data/ --out runs/csp

--dataset perov5 | carbon24 | mp20 | mpts52 (files in --data, as bin/download_data.py writes them), or a parquet or CSV
file with a column `cif`. --split val | test | val_tune | val_report (halves of val by formula).
For each row the model is told the reduced formula and the number of atoms in the given cell, and draws NUM structures:
a language model as text, a diffusion model (--model runs/diffusion_perov5) atoms and cell from noise. The control is a
folder of prepared data (--model data/carbon24), of which training crystals of the formula are drawn at random.
Prints match rate and RMSE, cRMSE and METRe of the first sample, of the best of NUM and of answers selected among them,
and writes OUT/results.json, results.md, targets.parquet. A stopped run goes on when the same command is given again.
A run on test rows is written to the log, and a second one with the same model needs --again.
"""

from __future__ import annotations

import argparse
import os
from typing import get_args

from crystallm.benchmark.csp import CSPConfig, benchmark_csp
from crystallm.benchmark.scores import results_table
from crystallm.refine.diffusion import Sampler


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split")
    parser.add_argument("--data", default=os.environ.get("CRYSTALLM_DATA"), help="folder; or set CRYSTALLM_DATA")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--where", help='rows to take, as a pandas query: "band_gap > 1"')
    parser.add_argument("--limit", type=int, help="the first rows of these")
    parser.add_argument("--num", type=int, default=20, help="samples for each row")
    parser.add_argument("--select", nargs="*", help="ways to select one; left out: likelihood and self_consistency")
    parser.add_argument("--formula-only", action="store_true", help="do not tell the number of atoms")
    parser.add_argument("--constraints", choices=("none", "syntax", "full"))
    parser.add_argument("--restarts", type=int, default=20, help="dead ends drawn again before a sample is given up")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--novel", action="store_true", help="draw again what is a known crystal")
    parser.add_argument("--known", help="these, as in bin/sample.py; left out: those that the model was trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-pairs", type=int, default=5_000_000, help="to compare at most for METRe")
    parser.add_argument("--model", help="checkpoint, or prepared data; left out: the bundled model")
    parser.add_argument("--sampler", choices=get_args(Sampler), help="of a diffusion model; left out: ancestral")
    parser.add_argument("--steps", type=int, help="of a diffusion model; left out: all of its schedule")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=256, help="sequences at once")
    parser.add_argument("--targets-at-once", type=int, default=50, help="rows in a chunk: what a killed run loses")
    parser.add_argument("--workers", type=int, help="processes for checks and matching; one a core by default")
    parser.add_argument("--log", help="for test rows; resources/LOG.md of a checkout by default")
    parser.add_argument("--again", action="store_true", help="run test rows once more with the same model")
    return parser.parse_args()


if __name__ == "__main__":
    settings = vars(parse_arguments())
    try:
        select = None if settings["select"] is None else tuple(settings["select"])
        print(results_table(benchmark_csp(CSPConfig(**settings | {"select": select}))))
    except (ValueError, ImportError, OSError) as err:
        raise SystemExit(str(err)) from None
