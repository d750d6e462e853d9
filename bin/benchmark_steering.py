"""Does a model make what is asked of it?  python bin/benchmark_steering.py --guidance 2 --out runs/steering

NUM structures are drawn for each asked value of a property with the composition left free, and for quantiles of what
the model draws unasked in each chemical system or formula of --prompts. Prints medians, errors, the correlation of
asked and obtained, valid and unique shares, each beside samples of which nothing was asked; writes steering.json and
steering.png. Density and volume per atom are computed; for other properties --scorer names what predicts them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crystallm.benchmark.steering import SteeringConfig, benchmark_steering, steering_table
from crystallm.output import check_output
from crystallm.report.steering_pictures import save_steering
from crystallm.sample.prompts import read_prompts

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint trained with property lines; left out: the bundled one")
    parser.add_argument("--property", default="density", help="with its unit or without")
    parser.add_argument(
        "--values", type=float, nargs="*", default=SteeringConfig.values, help="asked for; none: no grid"
    )
    parser.add_argument("--prompts", nargs="*", default=(), help="systems, formulas, or a file with one a line")
    parser.add_argument("--quantiles", type=float, nargs="+", default=SteeringConfig.quantiles)
    parser.add_argument("--num", type=int, default=SteeringConfig.num, help="samples for each value")
    parser.add_argument("--scorer", help="band_gap and the like, predicted, or module:function; left out: computed")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0, help="of the steered samples, as bin/sample.py's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--batch", type=int, default=256, help="sequences at once")
    parser.add_argument("--workers", type=int, default=0, help="processes for the checks")
    parser.add_argument("--out", help="folder for steering.json and steering.png")
    parser.add_argument("--overwrite", action="store_true", help="replace these two if they are there")
    given = vars(parser.parse_args())
    out, overwrite = given.pop("out"), given.pop("overwrite")
    given["values"], given["quantiles"] = tuple(given["values"]), tuple(given["quantiles"])
    try:
        for name in ("steering.json", "steering.png") if out is not None else ():
            check_output(Path(out, name), overwrite=overwrite)
        given["prompts"] = tuple(prompt for source in given["prompts"] for prompt in read_prompts(source))
        results = benchmark_steering(SteeringConfig(**given))
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(steering_table(results))
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        Path(out, "steering.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"\nwritten: {Path(out, 'steering.json')}, {save_steering(results, Path(out, 'steering.png'))}")
