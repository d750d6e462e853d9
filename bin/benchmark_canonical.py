"""How well the canonical text keeps crystals:  python bin/benchmark_canonical.py corpus.parquet --sample 2000

Prints the share that survives CIF → text → crystal (pymatgen's StructureMatcher, RMS ≤ 0.02, same space group), what
the others fail by, how often a crystal described anew (other cell, origin, orientation, order) gives the same text,
the mean number of tokens, and structures per second and core for CIF → text alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from itertools import chain, islice
from pathlib import Path

import numpy as np

from crystallm.data.readers import read_sources
from crystallm.metrics.canonical import report_canonical, summarize, time_canonical
from crystallm.parallel import available_cores, map_processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--sample", type=int, help="this many rows, drawn at random; all by default")
    parser.add_argument("--no-match", action="store_true", help="leave out the round trip")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, help="write the figures and every crystal that was lost here")
    options = parser.parse_args()

    records = ((record.id, record.cif) for record in read_sources(options.paths))
    if options.sample:
        items = list(records)
        chosen = np.random.default_rng(0).permutation(len(items))[: options.sample]
        records = (items[k] for k in chosen)
    first = list(islice(records, 300))
    start = time.process_time()
    time_canonical(first)
    rate = len(first) / (time.process_time() - start)
    work = functools.partial(report_canonical, match=not options.no_match)
    reports = list(map_processes(work, chain(first, records), options.workers, 8))
    summary = summarize(reports) | {"structures_per_cpu_second": rate}
    print(json.dumps({name: value for name, value in summary.items() if name != "lost"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
