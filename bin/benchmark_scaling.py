"""Cost as the work grows:  python bin/benchmark_scaling.py [corpus.parquet] --sizes 1000,10000,100000 --out growth.json

For each size, in a process of its own: seconds of CPU time, each structure's share, the peak of memory; then the
exponent of a fit, 1 for linear. Stages: prepare, sample, evaluate, unique (uniqueness of n structures and novelty
against n others). Beyond the corpus, structures are made from it with other elements. What would take longer than
--max-cpu-seconds is left out, and said. --all-pairs PATH holds the search for equal crystals against comparing all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crystallm.checks.known import canonical_text
from crystallm.data.readers import read_sources
from crystallm.output import check_output
from crystallm.speed.all_pairs import compare
from crystallm.speed.growth import STAGES, GrowthConfig, measure_growth
from crystallm.speed.tables import growth_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", help="corpus, as bin/prepare_data.py reads it; left out: the demo corpus")
    parser.add_argument("--sizes", default="1000,3000,10000", help="numbers of structures, rising")
    parser.add_argument("--stages", help=f"some of {','.join(STAGES)}; left out: all")
    parser.add_argument("--max-cpu-seconds", type=float, default=600.0, help="of one size; of --all-pairs altogether")
    parser.add_argument("--model", help="checkpoint; left out: the bundled model")
    parser.add_argument("--folder", help="for what is written on the way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-pairs", metavar="PATH", help="compare with all pairs of this corpus, and nothing else")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--overwrite", action="store_true", help="replace it if it is there")
    options = vars(parser.parse_args())
    out, all_pairs, overwrite = options.pop("out"), options.pop("all_pairs"), options.pop("overwrite")
    if out is not None:
        try:
            check_output(out, filter(None, (options["path"], all_pairs)), overwrite)
        except (ValueError, OSError) as err:
            parser.exit(2, f"{parser.prog}: {err}\n")
    if all_pairs is not None:
        texts = filter(None, map(canonical_text, read_sources([all_pairs])))
        result = compare(texts, options["max_cpu_seconds"], options["seed"])
        print(json.dumps(result, indent=2))
    else:
        options["stages"] = tuple(options["stages"].split(",")) if options["stages"] else ()
        try:
            config = GrowthConfig(**options | {"sizes": tuple(map(int, options["sizes"].split(",")))})
        except ValueError as err:
            parser.exit(2, f"{parser.prog}: {err}\n")
        result = measure_growth(config)
        print(growth_table(result))
    if out is not None:
        Path(out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
