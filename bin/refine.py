"""Refine crystals with the diffusion model:  python bin/refine.py generated/ --out refined/

PATHs are folders, CIFs, .tar or .parquet, of this program or any other. Each crystal's space group is kept: only the
free coordinates move, and the free lengths and angles. What passed the checks and fails them when refined
stays as it was, and is counted.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from crystallm.checks.filter import FilterConfig, filter_records
from crystallm.records import read_records, write_records
from crystallm.refine.records import RefineConfig
from crystallm.sample.refined import load, refine_checked
from crystallm.sample.report import Tally

DEFAULT = RefineConfig()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--out", required=True, help="folder, .tar or .parquet")
    parser.add_argument("--model", help="checkpoint of a refiner; left out: the bundled one")
    parser.add_argument(
        "--sigma",
        type=float,
        default=DEFAULT.start_sigma_ang,
        help="how far off atoms may be, Å (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=DEFAULT.num_steps, help="of denoising (default: %(default)s)")
    parser.add_argument("--keep-cell", action="store_true", help="move the atoms alone")
    parser.add_argument("--rules", choices=("default", "crystallm", "cdvae"), default="default", help="checks")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=0, help="processes for the checks")
    arguments = parser.parse_args()
    try:
        config = replace(
            DEFAULT, start_sigma_ang=arguments.sigma, num_steps=arguments.steps, free_cell=not arguments.keep_cell
        )
        model, info = load(arguments.model, arguments.device)
        checks, tally = FilterConfig(arguments.rules, workers=arguments.workers), Tally()
        checked = filter_records(read_records(*arguments.paths), checks)
        number = write_records(
            arguments.out, tally.through(refine_checked(checked, model, config, checks, info["model_hash"]))
        )
    except (ValueError, FileNotFoundError, FileExistsError) as err:
        parser.error(str(err))
    print(f"{tally.summary()}\n{number} written to {arguments.out}")
