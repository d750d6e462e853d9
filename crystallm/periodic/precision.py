"""Float32 with all its digits, for what depends on where atoms are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TensorFloat32, which training switches on: its 10 bits of a product are 3 mÅ of a length."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
