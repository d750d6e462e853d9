"""How well predictors do on test rows:  python bin/benchmark_properties.py runs/predictor_mp2018 --volumes mp20.parquet

RUNs are folders of bin/train.py config/predictor_*.yaml. Prints mean absolute errors of every branch, on all rows and
on those whose volume is that of the labelled structure; --picture draws whether expected errors are calibrated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crystallm.benchmark.properties import PropertyBenchmarkConfig, benchmark_properties, property_table
from crystallm.report.calibration_picture import draw_calibration

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--split", default="test")
    parser.add_argument("--volumes", nargs="+", default=[], help="tables of the structures as they were labelled")
    parser.add_argument("--path", nargs="+", help="where the runs' tables are now, if they moved")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--picture", help="file for the calibration picture")
    parser.add_argument("--json", help="file for all figures")
    given = parser.parse_args()
    path = tuple(given.path) if given.path else None
    settings = [
        PropertyBenchmarkConfig(run, given.split, tuple(given.volumes), path, given.device) for run in given.runs
    ]
    try:
        results = [benchmark_properties(one) for one in settings]
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(property_table(results))
    if given.picture:
        draw_calibration(results).savefig(given.picture, dpi=150)
        print(f"calibration drawn in {given.picture}")
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
