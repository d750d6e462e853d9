"""Train a model:  python bin/train.py config/mp_small.yaml out=runs/mine train.max_minutes=30

Arguments are YAML files and key=value (--help lists the keys). The same command again goes on where it stopped.
Several processes: torchrun --nproc_per_node=4 bin/train.py config/gpu_100m.yaml
A config with `refiner:` trains the diffusion model (config/refiner_mp.yaml), one with `predictor:` the property
predictor (config/predictor_mp.yaml).
Fine-tuning: init_from=<checkpoint> data.path=<shards>; the model's shape and vocabulary are then the checkpoint's,
dropout and the like (model.dropout, model.slot_weights, ...) what is asked for.
"""

from __future__ import annotations

import sys

from crystallm.training.run import train

if __name__ == "__main__":
    try:
        train()
    except (ValueError, FloatingPointError, ImportError, OSError) as err:
        sys.exit(f"train: {err}")
