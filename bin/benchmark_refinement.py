"""What refinement gives:  python bin/benchmark_refinement.py runs/csp --data data/ --num 1

RUN is a folder of bin/benchmark_csp.py. Its samples are refined and both are matched with the references again; prints
match rate and RMSE before and after, on the pairs that match both times, and what it cost.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from crystallm.benchmark.datasets import DatasetError
from crystallm.benchmark.refinement import RefinementConfig, compare_refined, refinement_table
from crystallm.refine.records import RefineConfig

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--data", default=os.environ.get("CRYSTALLM_DATA"), help="folder; or set CRYSTALLM_DATA")
    parser.add_argument("--model", help="checkpoint of a refiner; left out: the bundled one")
    parser.add_argument("--num", type=int, help="the first samples of each target; left out: all")
    parser.add_argument("--limit", type=int, help="the first targets")
    parser.add_argument("--sigma", type=float, default=RefineConfig.start_sigma_ang, help="how far off atoms may be, Å")
    parser.add_argument("--steps", type=int, default=RefineConfig.num_steps)
    parser.add_argument("--keep-cell", action="store_true", help="move the atoms alone")
    parser.add_argument("--free-symmetry", type=int, default=0, help="attempts without the space group")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", help="file for all figures")
    given = parser.parse_args()
    refine = RefineConfig(given.sigma, given.steps, not given.keep_cell, given.free_symmetry)
    try:
        results = compare_refined(
            RefinementConfig(given.run, given.data, given.model, given.num, given.limit, refine, given.device)
        )
    except (DatasetError, ValueError, ImportError, OSError) as err:
        raise SystemExit(str(err)) from None
    print(refinement_table(results))
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
