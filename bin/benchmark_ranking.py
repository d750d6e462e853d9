"""Does a predicted property find the right crystal?  python bin/benchmark_ranking.py runs/csp --by formation_energy

RUN is a folder of bin/benchmark_csp.py. Of each target's valid samples the one with the lowest value is the
answer; its match rate stands beside those of the first sample and of the run's own selections.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crystallm.benchmark.ranking import RankingConfig, compare_rankings, ranking_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--by", default=RankingConfig.by, help="property, or denoising_error; the lowest wins")
    parser.add_argument("--votes", type=float, nargs="*", default=RankingConfig.votes, help="widths of weighted votes")
    parser.add_argument("--model", help="checkpoint of a predictor; left out: the bundled one")
    parser.add_argument("--refine", action="store_true", help="predict for refined samples; they match as drawn")
    parser.add_argument("--limit", type=int, help="the first chunks of the run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file for all figures")
    given = vars(parser.parse_args())
    target = given.pop("json")
    if given["votes"] is not None:
        given["votes"] = tuple(given["votes"])
    try:
        results = compare_rankings(RankingConfig(**given))
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(ranking_table(results))
    if target:
        Path(target).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
