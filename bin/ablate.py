"""Train with one thing changed, judge by match rate:  python bin/ablate.py config/ablations.yaml minutes=10 seeds=0,1

Each row of the file trains for the same CPU time with each seed and predicts the same compositions. A stopped run goes
on when the same command is given again. Prints a table in Markdown; OUT/table.md and OUT/results.json hold it.
only="row name" runs one row; benchmark and train take further arguments of bin/benchmark_csp.py and bin/train.py.
"""

from __future__ import annotations

import sys

from crystallm.benchmark.ablation import AblationConfig, run_ablation
from crystallm.config import ConfigError, load_config

if __name__ == "__main__":
    try:
        print(run_ablation(load_config(AblationConfig)))
    except (ConfigError, OSError) as err:
        sys.exit(f"ablate: {err}")
