"""How cost grows with the work: preparation, sampling, evaluation, uniqueness and novelty of n structures, n rising.

result = measure_growth(GrowthConfig(sizes=(1000, 10_000)))
print(growth_table(result))

Structures beyond the corpus are made from it: other elements, the cell scaled by their radii, a tenth of them a near
copy of the one before. They come from a generator, so they take no memory. Every size runs in a process of its own.
"""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.cif import write_cif
from crystallm.crystal import reduce_composition
from crystallm.data.prepare import PrepareConfig, prepare
from crystallm.geometry import covalent_radii
from crystallm.metrics.evaluate import EvaluateConfig, evaluate
from crystallm.metrics.novelty import compare_rows
from crystallm.parallel import Failure, map_processes
from crystallm.records import CIFRecord, write_records
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.speed.ceilings import peak_mb, reset_peak, resident_mb
from crystallm.speed.measure import hardware
from crystallm.speed.rows import read_corpus
from tokenizer.elements import ATOMIC_NUMBERS, SYMBOLS

N_ELEMENTS = 94  # that structures are made of
REPEAT_EVERY = 10  # each tenth structure is the one before, strained a little
MAX_LENGTH_ANG = 99.0
N_WARM_UP = 20


@dataclass(frozen=True)
class GrowthConfig:
    path: str | None = None  # corpus, as bin/prepare_data.py reads it; None: the demo corpus
    sizes: tuple[int, ...] = (1000, 3000, 10_000)
    stages: tuple[str, ...] = ()  # (): all
    max_cpu_seconds: float = 600.0  # a size that would take longer, judged by the one before, is left out and said
    model: str | None = None
    seed: int = 0
    folder: str | None = None  # for what is written on the way; None: the system's temporary folder

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes must be numbers from 1 on, each larger than the one before, got {self.sizes}")
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise ValueError(f"no stage {unknown[0]!r}; there are {', '.join(STAGES)}")


def measure_growth(config: GrowthConfig) -> dict[str, Any]:
    corpus = read_corpus(config.path, max(config.sizes))
    stages: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, list[int]] = {}
    for stage in config.stages or tuple(STAGES):
        rows: list[dict[str, Any]] = []
        for n in config.sizes:
            if rows and rows[-1]["cpu_seconds"] * n / rows[-1]["n"] > config.max_cpu_seconds:
                left_out.setdefault(stage, []).append(n)
                continue
            rows.append(_in_new_process(stage, n, corpus.texts, config))
        stages[stage] = rows
    return {
        "hardware": hardware("cpu"),
        "settings": asdict(config) | {"corpus": config.path or "demo", "n_real": len(corpus.texts)},
        "stages": stages,
        "exponents": {stage: exponents(rows) for stage, rows in stages.items()},
        "left_out": left_out,
    }


def exponents(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """k of cost ~ n^k, by least squares of the logarithms; None of fewer than two sizes."""
    if len(rows) < 2:
        return None
    n = np.log([row["n"] for row in rows])
    found = {}
    for name, key in (("time", "cpu_seconds"), ("memory", "peak_mb")):
        costs = [row[key] for row in rows]
        if None not in costs:
            found[name] = float(np.polyfit(n, np.log(np.maximum(costs, 1e-3)), 1)[0])
    return found


def _in_new_process(stage: str, n: int, texts: tuple[str, ...], config: GrowthConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        task = (stage, n, texts, replace(config, folder=folder))
        if stage in MADE_BEFORE:
            [made] = map_processes(_make_input, [task], workers=1, chunk_size=1)
            if isinstance(made, Failure):
                raise RuntimeError(f"the input of stage {stage!r}, n = {n:,}: {made}")
        [result] = map_processes(_measure, [task], workers=1, chunk_size=1)
    if isinstance(result, Failure):
        raise RuntimeError(f"stage {stage!r}, n = {n:,}: {result}")
    return result


Task = tuple[str, int, tuple[str, ...], GrowthConfig]


def _measure(task: Task) -> dict[str, Any]:
    stage, n, texts, config = task
    warnings.simplefilter("ignore")
    tqdm.set_lock(threading.RLock())  # its own outlives a worker process, which the interpreter warns of
    with tempfile.TemporaryDirectory(
        dir=config.folder
    ) as folder:  # imports, tables and caches, before the clock starts
        warm_up = replace(config, folder=folder)
        if stage in MADE_BEFORE:
            _make_input((stage, N_WARM_UP, texts, warm_up))
        STAGES[stage](N_WARM_UP, texts, warm_up)
    reset_peak()
    before_mb, start, cpu_start = resident_mb(), time.perf_counter(), time.process_time()
    facts = STAGES[stage](n, texts, config)
    return {
        "n": n,
        "cpu_seconds": time.process_time() - cpu_start,
        "seconds": time.perf_counter() - start,
        "before_mb": before_mb,
        "peak_mb": peak_mb(),
        **facts,
    }


# ---------------------------------------------------------------- structures without end


def structures(texts: Sequence[str], n: int, seed: int = 0) -> Iterator[str]:
    """n canonical texts: those given, then substituted ones."""
    for k in range(n):
        yield texts[k] if k < len(texts) else substituted(texts, k, seed)


def substituted(texts: Sequence[str], k: int, seed: int) -> str:
    """Structure k: one of the texts with other elements in the places of its own, in the same order of the formula."""
    repeats = k % REPEAT_EVERY == REPEAT_EVERY - 1
    rng = np.random.default_rng([seed, k - repeats])
    unit = AsymmetricUnit.from_text(texts[int(rng.integers(len(texts)))])
    old = [symbol for symbol, _ in unit.formula]
    chosen = {SYMBOLS[z]: 1 for z in rng.choice(N_ELEMENTS, len(old), replace=False)}
    new = list(reduce_composition(chosen)[0])  # in formula order
    radii = covalent_radii()
    of = dict(zip(old, new, strict=True))
    counts = np.array([count for _, count in unit.formula])
    size_old, size_new = (
        (radii[[ATOMIC_NUMBERS[symbol] for symbol in symbols]] * counts).sum() for symbols in (old, new)
    )
    scale = float(size_new / size_old * rng.uniform(0.98, 1.1)) * (1.01 if repeats else 1.0)
    scale = min(max(scale, 1.01 / min(unit.cell[:3])), MAX_LENGTH_ANG / max(unit.cell[:3]))
    a, b, c, alpha, beta, gamma = unit.cell
    return replace(
        unit,
        formula=tuple((of[symbol], count) for symbol, count in unit.formula),
        cell=(a * scale, b * scale, c * scale, alpha, beta, gamma),
        sites=tuple(Site(of[site.symbol], site.letter, site.frac) for site in unit.sites),
    ).to_text()


def _make_input(task: Task) -> int:
    _, n, texts, config = task
    records = (
        CIFRecord(f"made-{k:07d}", write_cif(AsymmetricUnit.from_text(text)))
        for k, text in enumerate(structures(texts, n, config.seed))
    )
    return write_records(_input_path(config), records)


def _input_path(config: GrowthConfig) -> Path:
    assert config.folder is not None
    return Path(config.folder) / "input.parquet"


# ---------------------------------------------------------------- stages


def _prepare(n: int, texts: Sequence[str], config: GrowthConfig) -> dict[str, Any]:
    """CIFs in a parquet file → records and shards, duplicates sought."""
    out = str(_input_path(config).with_name("prepared"))
    result = prepare(PrepareConfig((str(_input_path(config)),), out, workers=0), show_progress=False)
    assert result.n_read == n
    return {"n_kept": result.n_kept}


def _sample(n: int, texts: Sequence[str], config: GrowthConfig) -> dict[str, Any]:
    """What `bin/sample.py --num n --out x.parquet` does: unprompted, all constraints, default checks, written."""
    n_ended = 0

    def records() -> Iterator[CIFRecord]:
        nonlocal n_ended
        for record in Generator.load(config.model, "cpu").stream(GenerateConfig(num=n, seed=config.seed)):
            n_ended += record.rejected_by not in ("dead_end", "unfinished")
            yield record

    assert write_records(_input_path(config).with_name("samples.parquet"), records()) == n
    return {"n_ended": n_ended}


def _evaluate(n: int, texts: Sequence[str], config: GrowthConfig) -> dict[str, Any]:
    """All checks, features, canonical texts, uniqueness."""
    result = evaluate(EvaluateConfig((str(_input_path(config)),), workers=0))
    assert result.generated.counts.n_read == n and result.uniqueness is not None
    return {"n_valid": result.generated.counts.n_valid, "n_unique": result.uniqueness.n}


def _unique(n: int, texts: Sequence[str], config: GrowthConfig) -> dict[str, Any]:
    """Uniqueness of n canonical texts, and novelty against n others of which a tenth are near copies of these."""
    made = structures(texts, n, config.seed)
    reference = (substituted(texts, REPEAT_EVERY * k + REPEAT_EVERY - 1, config.seed) for k in range(n))
    found = compare_rows(made, reference, n)
    assert found.novel is not None
    return {"n_unique": int((found.first == np.arange(n)).sum()), "n_novel": int((found.novel == 1).sum())}


STAGES: dict[str, Callable[[int, Sequence[str], GrowthConfig], dict[str, Any]]] = {
    "prepare": _prepare,
    "sample": _sample,
    "evaluate": _evaluate,
    "unique": _unique,
}
MADE_BEFORE = ("prepare", "evaluate")  # stages whose input is written first, in another process
