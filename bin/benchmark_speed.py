"""Structures per CPU-second, one thread, beside CrystaLLM's:  python bin/benchmark_speed.py perov5.parquet

Rows: encode (canonical text → ids), prepare (CIF → canonical text), sample (composition → canonical text, all
constraints), evaluate (CrystaLLM's validity rules on the given CIFs). bin/bench_training.py measures training. Time is
this process's CPU time, so other work on the machine disturbs little. --crystallm names the set whose figures of
CrystaLLM's published code (measured on two CPU cores of the same kind) stand beside ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable

import torch

from crystallm.asymmetric_unit import CanonicalError
from crystallm.canonical import canonicalize
from crystallm.checks.filter import FilterConfig, run_filter
from crystallm.cif import parse_cif
from crystallm.data.readers import read_sources
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.prompts import benchmark_prompt
from tokenizer import CIFTokenizer

# Structures a second; sampling from its tokens a second at its tokens per structure.
CRYSTALLM = {
    "perov5": {"encode": 1924.0, "prepare": 136.0, "sample": 28 / 380, "evaluate": 14.7},
    "general": {"encode": 0.75e6 / 533, "prepare": 136.0, "sample": 28 / 533, "evaluate": 14.7},
}


def per_second(work: Callable[[], int], repeat: int = 1) -> float:
    """`work` does something and returns how many structures that were."""
    work()  # warm up: tables, caches
    start = time.process_time()
    done = sum(work() for _ in range(repeat))
    return done / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="corpus with a column `cif`, or anything bin/prepare_data.py reads")
    parser.add_argument("--num", type=int, default=500, help="structures")
    parser.add_argument("--model", help="checkpoint; left out: the bundled model")
    parser.add_argument("--crystallm", choices=list(CRYSTALLM), default="perov5")
    options = parser.parse_args()

    torch.set_num_threads(1)
    records = list(itertools.islice(read_sources([options.path]), options.num))
    cifs = [record.cif for record in records if record.rejected_by is None]
    texts, prompts = [], []
    for cif in cifs:
        crystal = parse_cif(cif)[0]
        prompts.append(benchmark_prompt(crystal))
        try:
            texts.append(canonicalize(crystal).to_text())
        except CanonicalError:
            continue
    tokenizer = CIFTokenizer()
    generator = Generator.load(options.model, "cpu")
    config = GenerateConfig(num=1, seed=0, rules="none")

    def prepare() -> int:
        for cif in cifs[:200]:
            try:
                canonicalize(parse_cif(cif)[0]).to_text()
            except CanonicalError:
                continue
        return len(cifs[:200])

    rates = {
        "encode": per_second(lambda: len(tokenizer.encode_batch(texts)), repeat=20),
        "prepare": per_second(prepare),
        "sample": per_second(lambda: len(generator.generate_from(prompts, config))),
        "evaluate": per_second(lambda: run_filter(records[:200], FilterConfig("crystallm"))[1].n_read),
    }
    theirs = CRYSTALLM[options.crystallm]
    table = {
        name: {"structures_per_cpu_second": rate, "crystallm": theirs[name], "ratio": rate / theirs[name]}
        for name, rate in rates.items()
    }
    parameters = generator.model.n_block_parameters
    print(json.dumps({"block_parameters": parameters, "n_structures": len(cifs), **table}, indent=2))


if __name__ == "__main__":
    main()
