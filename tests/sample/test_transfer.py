from __future__ import annotations

import numpy as np
import torch

from crystallm.sample.transfer import moved_mask, unpacked


def test_a_mask_travels_in_bits():
    mask = np.random.default_rng(0).random((5, 37)) < 0.3
    packed = torch.from_numpy(np.packbits(mask, axis=1, bitorder="little"))
    assert torch.equal(unpacked(packed, 37), torch.from_numpy(mask))
    assert torch.equal(moved_mask(mask, torch.device("cpu")), torch.from_numpy(mask))
