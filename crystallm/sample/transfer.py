"""From the host to the device, without waiting for it: a step of the sampler moves some thirty small arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def moved(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on the device.

    A copy from ordinary memory makes the host wait for all that a GPU has been asked to do; one from pinned memory is
    queued behind it.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def moved_mask(mask: np.ndarray, device: torch.device) -> Tensor:
    """(n, K) bool on the device; eight to a byte on the way to a GPU: those of 4,000 lengths are 40 MB."""
    if device.type == "cpu":
        return torch.from_numpy(mask)
    return unpacked(moved(np.packbits(mask, axis=1, bitorder="little"), device), mask.shape[1])


def unpacked(packed: Tensor, n_columns: int) -> Tensor:
    """(n, K / 8) uint8, the first of eight in the lowest bit -> (n, K) bool"""
    bits = packed[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).bool().flatten(1)[:, :n_columns]
