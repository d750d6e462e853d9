"""What is drawn where nobody says which atoms: compositions of training crystals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from crystallm.crystal import Crystal
from crystallm.refine import compositions
from crystallm.refine.compositions import TrainingCells, start_crystals
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.loader import packed_freely

CELLS = TrainingCells.from_text("NaCl:44.85 Al4:66.43 Ti2O4:62.42 Cu:11.81")


@pytest.fixture(scope="module")
def model() -> CrystalDiffusionModel:
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4)
    model.training_cells = CELLS
    return model


def composition(crystal: Crystal) -> str:
    return "".join(f"{symbol}{n}" for symbol, n in sorted(crystal.composition.items()))


def test_text_round_trip_and_what_it_says():
    assert CELLS.to_text() == "NaCl:44.85 Al4:66.43 Ti2O4:62.42 Cu:11.81"
    assert [one.tolist() for one in CELLS.atomic_numbers] == [[11, 17], [13] * 4, [22, 22, 8, 8, 8, 8], [29]]
    assert CELLS.n_atoms.tolist() == [2, 4, 6, 1]
    # Cordero's radii (Å): Na 1.66, Cl 1.02, Al 1.21, Ti 1.60, O 0.66, Cu 1.32
    radii_cubed = [1.66**3 + 1.02**3, 4 * 1.21**3, 2 * 1.60**3 + 4 * 0.66**3, 1.32**3]
    assert CELLS.volume_over_radii_cubed == pytest.approx(np.median(CELLS.volume_ang3 / radii_cubed))
    for wrong in ("NaCl", "nacl:3", "Na4Cl4:"):
        with pytest.raises(ValueError, match=r"written like Na4Cl4:179\.41, got"):
            TrainingCells.from_text(wrong)


def test_kept_are_the_crystals_chosen_or_a_random_part(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    crystals = [Crystal(np.eye(3) * (3 + k), rng.random((1 + k % 3, 3)), np.full(1 + k % 3, 10 + k)) for k in range(9)]
    packed = packed_freely(crystals)
    kept = TrainingCells.of(packed, np.array([1, 4]))
    assert [one.tolist() for one in kept.atomic_numbers] == [[11, 11], [14, 14]]
    np.testing.assert_allclose(kept.volume_ang3, [64, 343])
    monkeypatch.setattr(compositions, "MAX_KEPT", 4)
    part = TrainingCells.of(packed, np.arange(9))
    assert len(part.n_atoms) == 4 and len({int(one[0]) for one in part.atomic_numbers}) == 4
    assert part.to_text() == TrainingCells.of(packed, np.arange(9)).to_text()


def test_draws_follow_the_training_and_repeat_with_the_seed(model: CrystalDiffusionModel):
    def draw(seed: int) -> list[Crystal]:
        return model.sample(batch_size=12, num_steps=2, seed=seed)

    first, second, other = draw(1), draw(1), draw(2)
    assert [composition(one) for one in first] == [composition(one) for one in second]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.frac_coords, b.frac_coords) and np.array_equal(a.lattice, b.lattice)
    assert [composition(one) for one in first] != [composition(one) for one in other]
    many = start_crystals(4000, None, None, None, None, torch.Generator().manual_seed(0), CELLS)
    counts = Counter(composition(one) for one in many)
    assert set(counts) == {"Cl1Na1", "Al4", "O4Ti2", "Cu1"}
    assert all(abs(n - 1000) < 4.5 * (4000 * 0.25 * 0.75) ** 0.5 for n in counts.values())
    volumes = {composition(one): one.volume_ang3 for one in many}
    assert volumes["Cl1Na1"] == pytest.approx(44.85) and volumes["Cu1"] == pytest.approx(11.81)


def test_mask_cell_and_max_atoms_choose_among_them(model: CrystalDiffusionModel):
    mask = np.arange(6) < np.array([[2], [6], [1]])
    drawn = model.sample(batch_size=3, max_atoms=6, mask=mask, num_steps=2, seed=0)
    assert [composition(one) for one in drawn] == ["Cl1Na1", "O4Ti2", "Cu1"]
    cells = np.eye(3) * np.cbrt([44.85, 62.42, 11.81])[:, None, None]
    drawn = model.sample(batch_size=3, max_atoms=6, mask=mask, lattice=cells, num_steps=2, seed=0)
    assert [composition(one) for one in drawn] == ["Cl1Na1", "O4Ti2", "Cu1"]
    np.testing.assert_allclose(drawn[1].lattice, cells[1], rtol=1e-6)
    large = model.sample(batch_size=30, lattice=np.eye(3) * 4.0, num_steps=1, seed=0)
    assert {composition(one) for one in large} == {"Al4", "O4Ti2"}  # 64 Å³; NaCl's is smaller by a factor of 1.43
    small = model.sample(batch_size=30, max_atoms=2, num_steps=1, seed=0)
    assert {composition(one) for one in small} == {"Cl1Na1", "Cu1"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"lattice": np.eye(3)},
            r"none of the 4 .* a volume within a factor of 1.25 of 1.0 Å³; they have 1 to 6 atoms",
        ),
        ({"mask": [True] * 3}, "none of the 4 training compositions that this model keeps has 3 atoms"),
        ({"mask": [False] * 3}, "has 0 atoms"),
        ({"mask": np.ones((2, 3))}, r"mask must be \(3,\) or \(1, 3\), got \(2, 3\)"),
        ({"mask": [True] * 3, "max_atoms": 2}, r"mask must be \(2,\) or \(1, 2\), got \(3,\)"),
        ({"max_atoms": -1}, "at most -1 atoms"),
    ],
)
def test_what_no_training_crystal_fits_is_told(model: CrystalDiffusionModel, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        model.sample(**arguments)


def test_a_cell_too_small_for_its_atoms_is_refused(model: CrystalDiffusionModel):
    edge = 4 ** (1 / 3)  # 2 Å³ for each of two atoms
    with pytest.raises(
        ValueError, match=r"a cell of 3\.99 Å³ is too small for 2 atoms: 2 Å³ an atom, wanted at least 2"
    ):
        start_crystals(1, np.eye(3) * edge * 0.999, ["Na", "Cl"], None, None, torch.Generator())
    (kept,) = start_crystals(1, np.eye(3) * edge * 1.001, ["Na", "Cl"], None, None, torch.Generator())
    assert kept.n_atoms == 2
    with pytest.raises(ValueError, match=r"a cell of 0\.008 Å³ is too small for 1 atom: 0\.008 Å³ an atom"):
        model.sample(batch_size=1, lattice=np.eye(3) * 0.2, species=["Na"], num_steps=1)
    with pytest.raises(
        ValueError, match=r"the cell repeats every 0\.0001 Å, so each atom lies on its own image; wanted"
    ):
        model.sample(batch_size=1, lattice=np.diag([1000, 1000, 1e-4]), species=["Na"], num_steps=1)
