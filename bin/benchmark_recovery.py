"""FCC, BCC and diamond from pure noise:  python bin/benchmark_recovery.py runs/refiner_tutorial --num 20

The tutorial's model (bin/train.py config/refiner_tutorial.yaml) draws Al, Fe and C in conventional cells and in 2x2x2
supercells with lattice constants that its data do not hold; recovered are those in which every atom has 12, 8 or 4
nearest neighbours.
"""

from __future__ import annotations

import argparse

from crystallm.benchmark.recovery import run
from crystallm.refine.checkpoint import load_refiner

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint of a diffusion model, or the folder of its run")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2], help="conventional cells along an edge")
    parser.add_argument("--num", type=int, default=20, help="structures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corrector-steps", type=int, default=5, help="of the sampler predictor_corrector")
    parser.add_argument("--candidates", type=int, default=8, help="as in bin/diffuse.py; 0: the cell as it is")
    given = parser.parse_args()
    try:
        model, _ = load_refiner(given.model)
    except (ValueError, FileNotFoundError) as err:
        parser.error(str(err))
    settings = {"corrector_steps": given.corrector_steps, "candidates": given.candidates}
    print(run(model, given.cells, num=given.num, seed=given.seed, **settings))
