"""Refine crystals with the diffusion model:  python bin/refine.py generated/ --out refined/

PATHs are CIFs, folders of them, POSCAR or extxyz files, tables with a CIF column, archives; records of this program
keep their text and provenance. Each crystal's space group is kept: only the free coordinates move, and the free lengths
and angles; --free-symmetry lets it change. What passed the checks and fails them when refined stays as it was,
and is counted. The exit status is 1 if no crystal is kept.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from crystallm.checks.filter import FilterConfig, filter_records
from crystallm.data.readers import read_sources
from crystallm.records import check_records_output, write_records
from crystallm.refine.records import RefineConfig
from crystallm.sample.refined import load, refine_checked
from crystallm.sample.report import Tally

DEFAULT = RefineConfig()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--out", required=True, help="folder, .tar or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    parser.add_argument("--keep-rejected", action="store_true", help="write the rejected ones too")
    parser.add_argument("--model", help="checkpoint of a refiner; left out: the bundled one")
    parser.add_argument(
        "--sigma",
        type=float,
        default=DEFAULT.start_sigma_ang,
        help="how far off atoms may be, Å (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=DEFAULT.num_steps, help="of denoising (default: %(default)s)")
    parser.add_argument("--keep-cell", action="store_true", help="move the atoms alone")
    parser.add_argument(
        "--free-symmetry",
        type=int,
        default=0,
        metavar="N",
        help="attempts without the space group; what the model knows better is kept, in the group found then",
    )
    parser.add_argument("--rules", choices=("default", "crystallm", "cdvae"), default="default", help="checks")
    parser.add_argument("--cif-column", default="cif", help="column of tables that holds the CIF text")
    parser.add_argument("--id-column", help="by default material_id, id, ..., else the row's number")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=0, help="processes for the checks")
    arguments = parser.parse_args()
    try:
        config = replace(
            DEFAULT,
            start_sigma_ang=arguments.sigma,
            num_steps=arguments.steps,
            free_cell=not arguments.keep_cell,
            free_symmetry=arguments.free_symmetry,
        )
        check_records_output(arguments.out, arguments.paths, arguments.overwrite)
        reading = {"id_column": arguments.id_column, "properties": {}}  # which are of the crystal as it was
        records = read_sources(arguments.paths, arguments.cif_column, **reading)
        model, info = load(arguments.model, arguments.device)
        checks, tally = FilterConfig(arguments.rules, workers=arguments.workers), Tally(drawn=False)
        refined = refine_checked(filter_records(records, checks), model, config, checks, info["model_hash"])
        passing = tally.to_write(refined, arguments.keep_rejected)
        number = write_records(arguments.out, passing, arguments.overwrite)
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(f"{tally.summary()}\n{number} written to {arguments.out}")
    raise SystemExit(0 if tally.counts.n_valid else 1)
