import warnings

import numpy as np
import pytest
import spglib

import crystallm.symmetry  # noqa: F401  (which says that spglib be silent)


def ask_about_distorted_cells() -> None:
    """At a tolerance at which spglib's C code gives up its first attempts now and then."""
    rng = np.random.default_rng(0)
    perovskite = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    for _ in range(400):
        lattice = np.diag(rng.normal(4, 0.05, 3))
        lattice[0, 1] = rng.normal(0, 0.08)
        spglib.get_symmetry_dataset((lattice, perovskite + rng.normal(0, 0.08, (5, 3)), [1, 2, 3, 3, 3]), symprec=1.2)


@pytest.mark.parametrize("wanted", [None, "ON"])
def test_spglib_prints_only_where_asked_to(
    wanted: str | None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if wanted:
        monkeypatch.setenv("SPGLIB_WARNING", wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ask_about_distorted_cells()
    assert ("spglib: " in capfd.readouterr().err) == (wanted == "ON")
