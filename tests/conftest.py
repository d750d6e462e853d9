"""Settings of every test: one thread, no network, no account, data that is the same each time."""

from __future__ import annotations

import os

# Before torch and numpy are imported: two OpenMP pools on two busy cores stall each other.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest
from hypothesis import settings

from crystallm.parallel import available_cores

settings.register_profile("ci", deadline=None, derandomize=True)  # a busy machine is slow, not wrong
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]


MOST_WORKERS = 8  # each holds torch and the bundled models, 1 GB or so


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means."""
    return min(available_cores(), MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A gpu test is skipped, not failed, where there is no CUDA device."""
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
