"""Match rate and cost of each search:  python bin/benchmark_search.py corpus.parquet --search beam mcts --limit 60

Prompt and match are those of bin/benchmark_csp.py. A line of JSON for each search and selection: match rate of its
answer and of the best of all it drew, structures and tokens drawn for each row, CPU-seconds (drawing, checks,
selection).
"""

from __future__ import annotations

import argparse
import json

from crystallm.benchmark.searches import SearchRun, benchmark_searches, summary
from crystallm.sample.search import SEARCHES, SearchConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="parquet or CSV with a column `cif`")
    parser.add_argument("--search", nargs="+", choices=tuple(SEARCHES), default=["self_consistency", "beam"])
    parser.add_argument("--num", type=int, default=20, help="samples, or rollouts; a stratum's share of them")
    parser.add_argument("--groups", type=int, default=10, help="strata of the search over space groups")
    parser.add_argument("--width", type=int, default=10, help="of the beam")
    parser.add_argument("--scorer", default="likelihood", help="of the tree")
    parser.add_argument("--where", help="rows to take, as a pandas query")
    parser.add_argument("--limit", type=int, help="the first rows of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="checkpoint folder; left out: the bundled model")
    args = parser.parse_args()
    all_ways = ("first", "likelihood", "likelihood_per_token", "self_consistency", "weighted_self_consistency")
    runs = []
    for name in args.search:
        draws = name not in ("beam", "mcts")
        settings = {"groups": args.groups, "width": args.width, "scorer": args.scorer}
        num = max(1, args.num // args.groups) if name == "space_groups" else args.num
        runs.append(SearchRun(SearchConfig(name, **settings), num, all_ways if draws else ("likelihood",)))
    for row in summary(benchmark_searches(args.path, runs, args.where, args.limit, args.seed, args.model)):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
