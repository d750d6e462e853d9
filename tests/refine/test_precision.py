"""What depends on places of atoms is computed with all digits of float32, whatever training has switched on."""

from __future__ import annotations

import pytest
import torch

from crystallm.periodic.precision import exactly


def test_neither_autocast_nor_shorter_products() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with exactly(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            with pytest.raises(ZeroDivisionError), exactly(torch.device("cpu")):
                1 / 0  # noqa: B018
            assert torch.get_float32_matmul_precision() == "high"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    finally:
        torch.set_float32_matmul_precision(before)
