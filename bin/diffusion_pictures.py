"""Pictures of a diffusion model:  python bin/diffusion_pictures.py runs/refiner --out pictures/

Writes training_curve.png (where the model's run has a metrics.jsonl), diffusion_schedule_analysis.png,
forward_diffusion_process.png, reverse_diffusion_process.png, structure_comparison.png and batch_analysis_TIME.png.
The real crystal is --cif, by default NaCl; structures are generated from noise in its cell, with its atoms. The batch
is --records (any records, e.g. of bin/sample.py), by default those structures.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

import numpy as np

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.output import check_output
from crystallm.records import read_records
from crystallm.report.diffusion_pictures import (
    PICTURES,
    BatchProperties,
    batch_analysis,
    batch_file_name,
    pictures_of_model,
    save_figures,
    training_curve,
)
from crystallm.sample.refined import load

SODIUM = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
ROCK_SALT = Crystal(np.eye(3) * 5.64, np.concatenate([SODIUM, SODIUM + 0.5]), np.repeat([11, 17], 4))

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a run's folder or a checkpoint")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace those that are there")
    parser.add_argument("--cif", help="the real crystal")
    parser.add_argument("--records", help="folder, .tar or .parquet of generated structures")
    parser.add_argument("--number", type=int, default=16, help="structures to generate")
    parser.add_argument("--steps", type=int, help="of denoising; left out: all of the schedule's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        for name in PICTURES:
            check_output(Path(arguments.out, f"{name}.png"), overwrite=arguments.overwrite)
        model, _ = load(arguments.model, "cpu")
        real = parse_cif(Path(arguments.cif).read_text(encoding="utf-8"))[0] if arguments.cif else ROCK_SALT
        figures, generated = pictures_of_model(model, real, arguments.number, arguments.steps, arguments.seed)
        if arguments.records:
            settings = {"records": arguments.records}
            batch = BatchProperties.of_records(read_records(arguments.records))
        else:
            settings = {"model": arguments.model, "steps": arguments.steps or "all", "seed": arguments.seed}
            batch = BatchProperties.of_crystals(generated)
        figures[batch_file_name(datetime.now())] = batch_analysis(batch, settings)
        logs = [folder / "metrics.jsonl" for folder in (Path(arguments.model), Path(arguments.model).parent)]
        if log := next((path for path in logs if path.is_file()), None):
            figures["training_curve"] = training_curve(log)
        paths = save_figures(figures, arguments.out)
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(*paths, sep="\n")
