"""Matching against pymatgen:  python bin/benchmark_matching.py samples.parquet references.parquet --limit 2000

samples.parquet holds records with ids "MATERIAL_ID/NUMBER", as a benchmark's samples/*.parquet do; references.parquet a
CIF for each material_id. Prints pairs a CPU-second of both, and whether they agree; exit status 1 where they do not.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np

from crystallm.benchmark.datasets import load_references
from crystallm.benchmark.judge import sample_crystal
from crystallm.metrics.csp import Target, plain_rms_distance, rms_distances
from crystallm.records import read_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples")
    parser.add_argument("references")
    parser.add_argument("--first", type=int, default=0, help="samples to skip")
    parser.add_argument("--limit", type=int, default=2000, help="samples to take")
    a = parser.parse_args()
    crystals = {one.id: one.crystal for one in load_references(a.references)[0] if one.crystal is not None}
    records = list(itertools.islice(read_records(a.samples), a.first, a.first + a.limit))
    targets = []
    for name, group in itertools.groupby(records, key=lambda record: record.id.rpartition("/")[0]):
        targets.append(Target(name, crystals[name], tuple(sample_crystal(record) for record in group)))
    rms_distances(targets[:1]), plain_rms_distance(targets[0].predictions[0], targets[0].reference)  # imports
    start = time.process_time()
    fast = rms_distances(targets)
    fast_s, start = time.process_time() - start, time.process_time()
    plain = np.full(fast.shape, np.nan)
    for row, target in enumerate(targets):
        plain[row, : len(target.predictions)] = [
            plain_rms_distance(one, target.reference) for one in target.predictions
        ]
    plain_s = time.process_time() - start
    differ = np.isnan(fast) != np.isnan(plain)
    # Below 1e-5 the matcher takes the first mapping, whatever comes later.
    differ |= ~np.isnan(fast) & ~np.isnan(plain) & (np.abs(fast - plain) > 1e-5)
    print(f"{len(records)} samples of {len(targets)} targets, {np.isfinite(plain).mean():.1%} match")
    print(f"crystallm {len(records) / fast_s:.0f} pairs/CPU-s ({1000 * fast_s / len(records):.2f} ms)")
    print(f"pymatgen  {len(records) / plain_s:.0f} pairs/CPU-s ({1000 * plain_s / len(records):.2f} ms)")
    for row, k in np.argwhere(differ):
        print(f"differ: {targets[row].id}/{k}: {fast[row, k]:.6f}, pymatgen {plain[row, k]:.6f}")
    print(f"ratio {plain_s / fast_s:.1f}; pairs that differ: {int(differ.sum())}")
    raise SystemExit(int(differ.any()))


if __name__ == "__main__":
    main()
