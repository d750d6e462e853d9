"""Average predictors into one:  python bin/ensemble_predictors.py runs/first runs/second --out runs/both

RUNs are folders of bin/train.py with one config and different seeds (train.seed=1 out=runs/second). The mean of several
is nearer the truth than each of them, and where they disagree the expected error grows; the time of a prediction grows
with their number. The folder serves wherever a predictor does: bin/predict.py --model, bin/sample.py --predictor.
"""

from __future__ import annotations

import argparse

from crystallm.hub import MODEL_FILES
from crystallm.training.ensemble import combine_predictors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", required=True, help="folder, new or of an exported model, which is replaced")
    parser.add_argument("--path", nargs="+", help="where the runs' tables are now, if they moved")
    try:
        folder = combine_predictors(**vars(parser.parse_args()))
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(f"{sum((folder / name).stat().st_size for name in MODEL_FILES):,} bytes written to {folder}")
