"""The structure encoder sees what physics sees: nothing of orientation, origin, order or the choice of the cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystallm.crystal import Crystal
from crystallm.properties.checkpoint import make_structure_encoder
from crystallm.properties.encoding import Encoder
from crystallm.properties.structure import StructureConfig

TRICLINIC = Crystal.from_parameters(
    (4.1, 5.3, 6.2, 82.0, 97.0, 108.0),
    [[0.02, 0.11, 0.23], [0.51, 0.47, 0.55], [0.83, 0.27, 0.71], [0.35, 0.91, 0.08]],
    ["Ca", "Ti", "O", "O"],
)
ALONE = Crystal.from_parameters((2.6, 2.6, 2.6, 60, 60, 60), [[0.4, 0.9, 0.1]], ["Cu"])
FAR = Crystal.from_parameters((30.0, 30.0, 30.0, 90, 90, 90), [[0.5, 0.5, 0.5]], ["Xe"])  # no neighbour in reach


@pytest.fixture(scope="module", params=["transformer", "cgcnn"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param == "cgcnn":
        pytest.importorskip("torch_geometric", reason="the graph network needs torch_geometric")
    torch.manual_seed(0)
    config = StructureConfig(encoder=request.param, width=32, n_layer=2, n_head=4, cutoff_ang=5.0)
    return make_structure_encoder(config).eval()


@pytest.fixture(scope="module")
def transformer() -> Encoder:
    torch.manual_seed(0)
    return make_structure_encoder(StructureConfig(width=32, n_layer=2, n_head=4, cutoff_ang=5.0)).eval()


@torch.no_grad()
def tokens(encoder: Encoder, *crystals: Crystal) -> list[np.ndarray]:
    encoding = encoder(encoder.collate(crystals))
    return [row[there].numpy() for row, there in zip(encoding.tokens, encoding.mask, strict=True)]


def turned(crystal: Crystal) -> Crystal:
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    return Crystal(crystal.lattice @ q, crystal.frac_coords, crystal.atomic_numbers)


def test_rotation_and_mirror_origin_and_order_change_nothing(encoder: Encoder) -> None:
    [plain] = tokens(encoder, TRICLINIC)
    shifted = Crystal(TRICLINIC.lattice, TRICLINIC.frac_coords + np.array([0.37, 0.81, 0.14]), TRICLINIC.atomic_numbers)
    order = [2, 0, 3, 1]
    mixed = Crystal(TRICLINIC.lattice, TRICLINIC.frac_coords[order], TRICLINIC.atomic_numbers[order])
    for other in (turned(TRICLINIC), shifted):
        np.testing.assert_allclose(tokens(encoder, other)[0], plain, atol=1e-5)
    np.testing.assert_allclose(tokens(encoder, mixed)[0], plain[order], atol=1e-5)


def test_the_choice_of_the_cell_changes_nothing(encoder: Encoder) -> None:
    [plain] = tokens(encoder, TRICLINIC)
    matrix = np.array([[1, 0, 0], [2, 1, 0], [-1, 3, 1]])  # another cell of the same lattice
    sheared = Crystal(matrix @ TRICLINIC.lattice, TRICLINIC.frac_coords @ np.linalg.inv(matrix), [20, 22, 8, 8])
    np.testing.assert_allclose(tokens(encoder, sheared)[0], plain, atol=1e-5)
    doubled = np.concatenate([TRICLINIC.frac_coords, TRICLINIC.frac_coords + np.array([1, 0, 0])]) / [2, 1, 1]
    supercell = Crystal(TRICLINIC.lattice * [[2], [1], [1]], doubled, np.tile(TRICLINIC.atomic_numbers, 2))
    np.testing.assert_allclose(tokens(encoder, supercell)[0], np.tile(plain, (2, 1)), atol=1e-5)


def test_batches_do_not_mix(encoder: Encoder) -> None:
    together = tokens(encoder, ALONE, TRICLINIC, FAR)
    for one, crystal in zip(together, (ALONE, TRICLINIC, FAR), strict=True):
        np.testing.assert_allclose(one, tokens(encoder, crystal)[0], atol=1e-5)


@pytest.mark.parametrize("what", ["species", "distance", "angle"])
def test_species_distances_and_angles_are_seen(transformer: Encoder, what: str) -> None:
    def molecule(z: int, length: float, angle: float) -> Crystal:  # far from its images
        cart = [[0, 0, 0], [length, 0, 0], [length * np.cos(angle), length * np.sin(angle), 0]]
        return Crystal(np.eye(3) * 20, np.array(cart) / 20 + 0.5, np.array([z, 8, 8]))

    plain = tokens(transformer, molecule(14, 1.6, 1.8))[0]
    other = {"species": (15, 1.6, 1.8), "distance": (14, 1.7, 1.8), "angle": (14, 1.6, 2.1)}[what]
    assert np.abs(tokens(transformer, molecule(*other))[0][0] - plain[0]).max() > 1e-3


def test_vectors_change_smoothly_at_the_cutoff(transformer: Encoder) -> None:
    def pair(distance: float) -> np.ndarray:
        sites = np.array([[0, 0, 0], [distance / 30, 0, 0]])
        return tokens(transformer, Crystal(np.eye(3) * 30, sites, np.array([3, 9])))[0]

    assert np.abs(pair(4.9999) - pair(5.0001)).max() < 1e-4
    assert np.abs(pair(4.0) - pair(5.0001)).max() > 1e-3


def test_one_atom_and_five_hundred(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    large = Crystal(np.eye(3) * 19.0, rng.random((500, 3)), rng.integers(1, 90, 500))
    assert tokens(encoder, large)[0].shape == (500, 32)
    with pytest.raises(ValueError, match="501 atoms in the cell, wanted 1 to 500"):
        encoder.collate([Crystal(np.eye(3) * 19.0, rng.random((501, 3)), rng.integers(1, 90, 501))])


def test_gradients_are_finite_where_nobody_is_near(encoder: Encoder) -> None:
    encoder.zero_grad()
    encoder(encoder.collate([FAR, ALONE])).mean().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    encoder.zero_grad()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible by n_head"):
        StructureConfig(width=30, n_head=4)
    with pytest.raises(ValueError, match=r"^cutoff_ang must be above 0"):
        StructureConfig(cutoff_ang=0.0)
    with pytest.raises(ValueError, match=r"^dropout must be in \[0, 1\), got 1.0"):
        StructureConfig(dropout=1.0)


def test_dropout_is_for_training_alone(crystal_of) -> None:
    torch.manual_seed(0)
    encoder = make_structure_encoder(StructureConfig(width=32, n_head=2, n_layer=1, dropout=0.5))
    part = encoder.collate([crystal_of["olivine", "LiFePO4"]])
    encoder.eval()
    assert torch.equal(encoder(part).tokens, encoder(part).tokens)
    encoder.train()
    assert not torch.equal(encoder(part).tokens, encoder(part).tokens)


def test_encoders_that_share_a_part_answer_as_alone(transformer: Encoder) -> None:
    """Of one cutoff they share what they know of the surroundings, also where one of them casts it."""
    short = make_structure_encoder(StructureConfig(width=32, n_layer=1, n_head=4, cutoff_ang=4.0)).eval()
    part, crystals = transformer.collate([TRICLINIC]), (TRICLINIC,)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert transformer(part).tokens.dtype == torch.float32
        together = [encoder(part).tokens[0].numpy() for encoder in (transformer, short, transformer)]
    assert len(part.known) == 2  # type: ignore[attr-defined]
    for found, encoder in zip(together, (transformer, short, transformer), strict=True):
        np.testing.assert_array_equal(found, tokens(encoder, *crystals)[0])
