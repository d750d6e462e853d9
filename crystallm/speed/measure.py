"""Measures the rows of the speed table, each in a process of its own, and says what they were measured on.

result = measure_speed(SpeedConfig(num=300))  # plain data, for JSON
print(speed_table(result))
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from crystallm.model.gpt import GPTConfig
from crystallm.parallel import available_cores, run_in_new_process
from crystallm.speed.ceilings import (
    Elapsed,
    copy_bytes_per_s,
    peak_mb,
    product_operations_per_s,
    reset_peak,
    resident_mb,
    timed,
)
from crystallm.speed.rows import ROWS, Corpus, Row, SpeedConfig, parse_shape, read_corpus
from crystallm.version import __version__

PACKAGES = ("torch", "numpy", "tiktoken", "pymatgen", "spglib", "moyopy", "pyarrow")

# Structures a second of CrystaLLM's published code, measured elsewhere: one thread of a CPU, CPU time, torch 2.13,
# 3.2 M parameters, Perov-5 (general structures in the comment). Sampling from its tokens a second.
CRYSTALLM = {
    "encode": 1924.0,  # 0.75 M tokens: 1,407
    "prepare": 136.0,  # 116-157
    "train": 3.8,  # 1,440 tokens
    "sample": 28 / 380,  # 28 tokens: 0.053
    "evaluate": 14.7,
    "match": 61.5,
}


# Dense bf16 operations a second from the makers' data sheets, by which model FLOP utilisation is reckoned.
BF16_PEAKS = {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H200": 989.4e12, "NVIDIA A100": 312e12}


def measure_speed(config: SpeedConfig) -> dict[str, Any]:
    """All rows; RuntimeError where one fails."""
    load = _load()
    corpus = read_corpus(config.path, config.num)
    rows = {name: _in_new_process(name, corpus, config) for name in config.rows or tuple(ROWS)}
    if {"train", "loader"} <= rows.keys():
        train, loader = rows["train"], rows["loader"]
        loader["share_of_a_step"] = train["structures_per_cpu_second"] / loader["structures_per_cpu_second"]
        if config.device != "cpu":  # batches are made while the GPU computes: by the clock
            loader["share_of_a_step"] = train["structures_per_second"] / loader["structures_per_second"]
    return {
        "hardware": hardware(config.device),
        "load_average": load,
        "versions": {"python": platform.python_version(), "crystallm": __version__, **_versions()},
        "settings": asdict(config) | {"corpus": config.path or "demo", "n_structures": len(corpus.texts)},
        "rows": rows,
    }


def _in_new_process(name: str, corpus: Corpus, config: SpeedConfig) -> dict[str, Any]:
    """So that a row's peak of memory is its own, and no row finds another's caches."""
    try:
        return run_in_new_process(_measure_task, (name, corpus, config))
    except Exception as err:
        raise RuntimeError(f"row {name!r}: {type(err).__name__}: {err}") from err


def _measure_task(task: tuple[str, Corpus, SpeedConfig]) -> dict[str, Any]:
    return measure_row(*task)


def measure_row(name: str, corpus: Corpus, config: SpeedConfig) -> dict[str, Any]:
    """One row, in this process."""
    warnings.simplefilter("ignore")  # pymatgen's, a line for each CIF
    torch.set_num_threads(config.threads)
    if not ROWS[name].on_device:
        config = replace(config, device="cpu")
    row = ROWS[name](corpus, config)
    device = config.device
    warm = row.items[: row.warm_up]
    row.ours(warm)
    row.plain(warm[:1])
    start_mb = resident_mb()
    ours, plain = Elapsed(0, 0), Elapsed(0, 0)
    results: list[Any] = []
    compared: list[bool] = []
    n_plain = 0.0
    highest_mb: list[int | None] = []
    for part in _parts(row, config):
        done: list[Any] = []
        reset_peak()
        for _ in range(row.repeat):
            done.clear()
            ours += timed(lambda part=part, done=done: done.extend(row.ours(part)), device)  # type: ignore[misc]
        highest_mb.append(peak_mb())
        results += done
        few = part[: _plain_share(row, config)]
        slow: list[Any] = []
        plain += timed(lambda few=few, slow=slow: slow.extend(row.plain(few)), device)  # type: ignore[misc]
        n_plain += sum(map(row.n_structures, slow))
        if row.comparable:
            compared += [row.same(*three) for three in zip(few, done, slow, strict=False)]
    n_done = row.repeat * sum(map(row.n_structures, results))
    rate, plain_rate = (
        (n_done / ours.seconds, n_plain / plain.seconds)
        if row.by_clock
        else (n_done / ours.of(device), n_plain / plain.of(device))
    )
    return {
        "structures": round(n_done / row.repeat),
        "structures_per_cpu_second": n_done / ours.cpu_seconds,
        "structures_per_second": n_done / ours.seconds,
        "plain_structures": round(n_plain),
        "plain_per_cpu_second": n_plain / plain.cpu_seconds,
        "plain_per_second": n_plain / plain.seconds,
        "ratio": rate / plain_rate,
        "same_as_plain": sum(compared) if row.comparable else None,
        "compared": len(compared),
        **_share(row, row.items, results, ours.seconds if row.by_clock else ours.of(device), device),
        "peak_mb": max((mb for mb in highest_mb if mb is not None), default=None),
        "start_mb": start_mb,
        "end_mb": resident_mb(),
        "crystallm_elsewhere": CRYSTALLM.get(name),
        **row.facts,
    }


def _parts(row: Row, config: SpeedConfig) -> list[Sequence[Any]]:
    """The items in as many parts as there are rounds; no item twice, or a cache would answer for it."""
    if row.one_go:
        return [row.items]
    size = -(-len(row.items) // config.rounds)
    return [row.items[k : k + size] for k in range(0, len(row.items), size)]


def _plain_share(row: Row, config: SpeedConfig) -> int:
    number = row.plain_num if config.plain_num is None else config.plain_num
    return number if row.one_go else max(1, number // config.rounds)


def _share(row: Row, items: Sequence[Any], results: Sequence[Any], seconds: float, device: str) -> dict[str, Any]:
    """What the row asks of the machine over what the machine can do, measured in the same process."""
    demands = [row.demand(item, result) for item, result in zip(items, results, strict=True)]
    operations, moved = sum(d.operations for d in demands), sum(d.bytes for d in demands)
    if operations:
        name = str(row.dtype).removeprefix("torch.")
        ceiling = product_operations_per_s(row.model_config(), row.dtype, device)
        asked = operations
    else:
        name, ceiling, asked = "copy", copy_bytes_per_s(device), moved
    rate = row.repeat * asked / seconds
    peak = next((value for gpu, value in BF16_PEAKS.items() if _gpu_name(device).startswith(gpu)), None)
    if operations and peak is not None:
        row.facts["model_flop_utilisation"] = rate / peak
    return {
        "ceiling": name,
        "share_of_ceiling": rate / ceiling,
        "asked_per_second": rate,
        "ceiling_per_second": ceiling,
    }


def measure_ceilings(config: SpeedConfig) -> dict[str, float]:
    """In GFLOP/s and GB/s, at the shapes of the model that the rows use."""
    torch.set_num_threads(config.threads)
    shape = GPTConfig() if config.model_shape is None else parse_shape(config.model_shape)
    found = {}
    for device in dict.fromkeys(("cpu", config.device)):
        for dtype in (torch.float32, torch.bfloat16):
            speed = product_operations_per_s(shape, dtype, device)
            found[f"{device} {str(dtype).removeprefix('torch.')} products, GFLOP/s"] = round(speed / 1e9, 1)
        found[f"{device} copy, GB/s"] = round(copy_bytes_per_s(device) / 1e9, 1)
    return found


# ---------------------------------------------------------------- what it was measured on


def hardware(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        found["gpu"] = _gpu_name(device)
        found["gpu_memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return found


def _gpu_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else ""


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gb() -> float | None:
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    known = getattr(os, "sysconf_names", {})
    return round(os.sysconf(names[0]) * os.sysconf(names[1]) / 2**30, 1) if set(names) <= set(known) else None


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
