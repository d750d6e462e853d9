"""What this machine can do at most: matrix products at a model's shapes, copying memory. And clocks to measure with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from crystallm.model.gpt import GPTConfig

ROWS = 8192  # of a product's left side: the tokens of a training batch
COPY_BYTES = 1 << 28  # beyond any cache
REPEATS = 5
LONGEST_S = 2.0  # of one measurement


@dataclass(frozen=True)
class Elapsed:
    seconds: float
    cpu_seconds: float  # of this process, all threads

    def __add__(self, other: Elapsed) -> Elapsed:
        return Elapsed(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def of(self, device: str) -> float:
        """What rates are made of: CPU time, which other work on the machine disturbs little; on a GPU the clock."""
        return self.seconds if device.startswith("cuda") else self.cpu_seconds


def timed(work: Callable[[], object], device: str = "cpu") -> Elapsed:
    _wait(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return Elapsed(time.perf_counter() - start, time.process_time() - cpu_start)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def product_shapes(config: GPTConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products of one block: what most of a model's time is spent on."""
    width, inner = config.n_embd, config.n_mlp
    return [(width, 3 * width), (width, width), (width, inner * (2 if config.mlp == "swiglu" else 1)), (inner, width)]


def product_operations_per_s(config: GPTConfig, dtype: torch.dtype, device: str = "cpu") -> float:
    """Of the block's products one after the other, the best of some repeats; a multiplication and an addition are 2.

    With fewer rows where ROWS would take long: bfloat16 on a CPU that cannot multiply it does 1 GFLOP/s.
    """
    few = ROWS // 64
    rate = _products_rate(config, dtype, device, few)
    operations = sum(2 * ROWS * n * m for n, m in product_shapes(config))
    return _products_rate(config, dtype, device, ROWS) if operations / rate < LONGEST_S else rate


def _products_rate(config: GPTConfig, dtype: torch.dtype, device: str, rows: int) -> float:
    pairs = [
        (torch.randn(rows, n, device=device).to(dtype), torch.randn(n, m, device=device).to(dtype))
        for n, m in product_shapes(config)
    ]

    def products() -> None:
        for a, b in pairs:
            a @ b

    products()
    best = min(timed(products, device).of(device) for _ in range(REPEATS))
    return sum(2 * rows * a.shape[1] * b.shape[1] for a, b in pairs) / best


def copy_bytes_per_s(device: str = "cpu") -> float:
    """Read and written, both counted."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(timed(lambda: target.copy_(source), device).of(device) for _ in range(REPEATS))
    return 2 * COPY_BYTES / best


# ---------------------------------------------------------------- memory


def resident_mb() -> int | None:
    """What this process holds now; None where the system does not say (/proc)."""
    return _status("VmRSS")


def peak_mb() -> int | None:
    """The most it has held since the start, or since `reset_peak` where the system allows that.

    Not getrusage's ru_maxrss: that survives exec, so a child process starts with its parent's peak.
    """
    return _status("VmHWM")


def reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return round(int(line.split()[1]) / 1024)
    return None
