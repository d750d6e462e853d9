"""What fine-tuning on few structures gives:  python bin/benchmark_finetuning.py data/perov5 --sizes 20 100 1000

For each number of training structures runs bin/train.py with config/finetune.yaml on a random choice of so many, and
prints the validation loss before (0) and after, in nats per structure: the best one, where early stopping ends the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from crystallm.model.checkpoint import load_checkpoint
from crystallm.resources import resource_path
from crystallm.train.loader import TokenShards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="shards, as bin/prepare_data.py writes them")
    parser.add_argument("--model", default=str(resource_path("resources") / "model"), help="checkpoint to start from")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="for bin/train.py")
    arguments = parser.parse_args()

    model, _, _ = load_checkpoint(arguments.model)
    val = TokenShards(arguments.data, "val")
    before = -np.concatenate(
        [
            model.log_likelihood([val[k] for k in range(start, min(start + 64, len(val)))])[0].numpy()
            for start in range(0, len(val), 64)
        ]
    )
    rows = [{"structures": 0, "nats_per_structure": float(before.mean()), "steps": 0, "seconds": 0.0}]
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as out:
            start_time = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, str(resource_path("bin/train.py")), str(resource_path("config/finetune.yaml"))),
                    *(f"init_from={arguments.model}", f"data.path={arguments.data}", f"out={out}"),
                    f"data.max_structures={size}",
                    *arguments.set,
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
            best = min(
                (entry for entry in map(json.loads, lines) if entry["kind"] == "val"),
                key=lambda entry: entry["nats_per_structure"],
            )
        rows.append(
            {
                "structures": size,
                "nats_per_structure": best["nats_per_structure"],
                "steps": best["step"],
                "seconds": round(time.perf_counter() - start_time, 1),
            }
        )
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
