"""Where a process computes, and how processes add up what they found (torchrun sets RANK and WORLD_SIZE)."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Processes:
    """This process among its like: data-parallel, each with the whole model."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over processes, in one message."""
        if self.world == 1:
            return
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, values: Sequence[float]) -> list[float]:
        """Each value's maximum over processes, so that all of them decide alike."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def start_processes(device: Device = "auto", threads: int | None = None) -> Processes:
    """Join the processes that torchrun started (or be alone) and choose this one's device."""
    # oneDNN keeps a kernel for each shape of a matrix product, and no two batches have the same shape.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if threads is not None:
        torch.set_num_threads(threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = pick_device(device).type
    chosen = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
        # cuDNN's attention plans anew for each shape, and each batch has another: 158 ms a step of 8 layers on an H100,
        # 51 with the flash kernel.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Processes(rank, world, chosen)


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else MPS, else the CPU. ValueError for a device that is not there."""
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has[kind]))
    if has.get(name.split(":")[0], False):
        with suppress(RuntimeError):  # cpu:x
            return torch.device(name)
    there = ", ".join(kind for kind in has if has[kind])
    raise ValueError(f"no device {name!r} here, by torch {torch.__version__}; there are auto, {there}")


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the hardware multiplies it natively, on a CPU where it does so faster; else float32."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return torch.bfloat16
    return torch.float32


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    """Whether a product of matrices takes less time in bfloat16 than in float32, as measured once, in 15 ms.

    With AMX it takes a third. With AVX-512's instructions alone (a Xeon whose AMX the virtual machine hides) it takes
    1.2 to 1.9 times as long; without either, 50 times, which is not tried.
    """
    is_native = any(
        getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return is_native and _product_seconds(torch.bfloat16) < 0.8 * _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of some products of a layer's size"""
    left, right = torch.ones(512, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def release_memory() -> None:
    """Hand freed memory back to the system, where the C library is glibc; elsewhere do nothing.

    Tensors of ever-changing shapes leave gaps behind: after 100 steps of a small model in bfloat16, 1.8 GB are held
    where 0.6 are in use.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
