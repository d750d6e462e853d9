"""FCC, BCC and diamond from pure noise:  python bin/benchmark_recovery.py runs/refiner_tutorial --num 20

The tutorial's model (bin/train.py config/refiner_tutorial.yaml) draws Al, Fe and C in conventional cells and in 2x2x2
supercells with lattice constants that its data do not hold; recovered are those in which every atom has 12, 8 or 4
nearest neighbours. With --dataset: the crystals of a benchmark, each drawn once in its conventional cell, and how many
match, by the bundled model or another:
  python bin/benchmark_recovery.py --dataset mp20 --split val --limit 100 --data DATA --steps 50 --candidates 0 1 8
"""

from __future__ import annotations

import argparse
import os

from crystallm.benchmark.datasets import load_references
from crystallm.benchmark.recovery import conventional_cells, find_known, found_table, recover_prototypes
from crystallm.sample.diffused import CANDIDATES
from crystallm.sample.refined import load

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="diffusion model, or its run's folder; left out: the bundled one")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2], help="conventional cells along an edge")
    parser.add_argument("--num", type=int, default=20, help="structures of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corrector-steps", type=int, default=5, help="of the sampler predictor_corrector")
    parser.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[CANDIDATES],
        help=f"as in bin/diffuse.py (default: {CANDIDATES}); several: a table or row each",
    )
    parser.add_argument("--dataset", help="perov5, carbon24, mp20, mpts52, or a table with a column cif")
    parser.add_argument("--split", default="val", help="of the data set (default: val)")
    parser.add_argument("--data", default=os.environ.get("CRYSTALLM_DATA"), help="folder of the data set's table")
    parser.add_argument("--limit", type=int, help="the first rows only")
    parser.add_argument("--max-atoms", type=int, default=40, help="cells with more are left out (default: 40)")
    parser.add_argument("--steps", type=int, help="with --dataset; left out: all of the model's schedule")
    given = parser.parse_args()
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it prints what is raised anyway
    try:
        model, _ = load(given.model, "cpu")
        if given.dataset:
            references, selection = load_references(given.dataset, given.split, given.data, limit=given.limit)
            cells = conventional_cells(references, given.max_atoms)
            print(f"{selection.file}, {selection.rows}: {len(cells)} of {len(references)} cells", flush=True)
            print(found_table([find_known(model, cells, n, given.steps, given.seed) for n in given.candidates]))
        for n in given.candidates if not given.dataset else ():
            settings = {"num": given.num, "seed": given.seed, "corrector_steps": given.corrector_steps}
            print(f"{n} candidates\n{recover_prototypes(model, given.cells, candidates=n, **settings)}")
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
