"""What the network must not see: how the crystal is turned, shifted, numbered, wrapped, or cut into a cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystallm.crystal import Crystal
from crystallm.geometry import neighbour_pairs
from crystallm.periodic.basis import spherical_harmonics
from crystallm.periodic.neighbours import Neighbours
from crystallm.refine.batch import make_batch
from crystallm.refine.denoiser import Noise, symmetric_tensor
from crystallm.refine.diffusion import CrystalDiffusionModel

TRICLINIC = Crystal.from_parameters(
    (4.1, 5.3, 6.2, 82.0, 97.0, 108.0),
    [[0.02, 0.11, 0.23], [0.51, 0.47, 0.55], [0.83, 0.27, 0.71], [0.35, 0.91, 0.08]],
    ["Ca", "Ti", "O", "O"],
)


@pytest.fixture(scope="module", params=[False, True], ids=["scalar messages", "vector messages"])
def model(request: pytest.FixtureRequest) -> CrystalDiffusionModel:
    torch.manual_seed(0)
    return CrystalDiffusionModel(hidden_dim=32, num_layers=3, cutoff_ang=5.0, vector_messages=request.param).eval()


@torch.no_grad()
def answer(model: CrystalDiffusionModel, crystal: Crystal, sigma: float = 0.3) -> Noise:
    batch = make_batch([crystal])
    near = Neighbours(batch.lattice, batch.n_atoms, model.config.cutoff_ang)
    return model.predict(batch, torch.tensor([sigma]), torch.tensor([True]), near)


def rotation() -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def close(got: torch.Tensor, wanted: torch.Tensor | np.ndarray) -> bool:
    return torch.allclose(got, torch.as_tensor(np.asarray(wanted), dtype=torch.float32), atol=1e-5)


def test_answers_turn_with_the_crystal(model: CrystalDiffusionModel):
    plain, turn = answer(model, TRICLINIC), rotation()
    turned = answer(model, Crystal(TRICLINIC.lattice @ turn, TRICLINIC.frac_coords, TRICLINIC.atomic_numbers))
    assert plain.cart.abs().max() > 1e-3 and plain.strain.abs().max() > 1e-3
    assert close(turned.cart, plain.cart.numpy() @ turn)
    assert close(turned.strain, turn.T @ plain.strain[0].numpy() @ turn)


def test_origin_order_and_lattice_translations_change_nothing(model: CrystalDiffusionModel):
    plain = answer(model, TRICLINIC)
    shifted = answer(
        model, Crystal(TRICLINIC.lattice, TRICLINIC.frac_coords + np.array([0.37, 0.81, 0.14]), [20, 22, 8, 8])
    )
    assert close(shifted.cart, plain.cart) and close(shifted.strain, plain.strain)
    order = [2, 0, 3, 1]
    reordered = Crystal(TRICLINIC.lattice, TRICLINIC.frac_coords[order], TRICLINIC.atomic_numbers[order])
    assert close(answer(model, reordered).cart, plain.cart[order])
    batch = make_batch([TRICLINIC])
    beyond = batch.frac_coords + torch.tensor([[1.0, -2, 0], [0, 0, 3], [0, 0, 0], [-1, 1, 1]])
    near = Neighbours(batch.lattice, batch.n_atoms, 5.0)
    with torch.no_grad():
        noise = model.denoiser(batch, near.edges(beyond), torch.tensor([0.3]), torch.tensor([True]))
    assert close(noise.cart, plain.cart)


def test_another_cell_or_a_supercell_of_the_same_crystal(model: CrystalDiffusionModel):
    plain = answer(model, TRICLINIC)
    basis = np.array([[1, 1, 0], [0, 1, 0], [-1, 0, 1]])
    frac = TRICLINIC.frac_coords @ np.linalg.inv(basis)
    sheared = answer(model, Crystal(basis @ TRICLINIC.lattice, frac, TRICLINIC.atomic_numbers))
    assert close(sheared.cart, plain.cart) and close(sheared.strain, plain.strain)
    cells = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 1, 3)
    frac = ((TRICLINIC.frac_coords + cells) / 2).reshape(-1, 3)
    doubled = answer(model, Crystal(2 * TRICLINIC.lattice, frac, np.tile(TRICLINIC.atomic_numbers, 8)))
    assert close(doubled.cart, plain.cart.repeat(8, 1)) and close(doubled.strain, plain.strain)


def test_a_crystal_is_answered_alone_as_in_a_batch(model: CrystalDiffusionModel):
    one = Crystal.from_parameters((3.6, 3.6, 3.6, 90, 90, 90), [[0, 0, 0]], ["Cu"])
    batch = make_batch([one, TRICLINIC, one])
    near = Neighbours(batch.lattice, batch.n_atoms, 5.0)
    with torch.no_grad():
        noise = model.predict(batch, torch.tensor([1.0, 0.3, 0.1]), torch.tensor([True, True, True]), near)
    assert close(noise.cart[1:5], answer(model, TRICLINIC).cart)
    assert close(noise.strain[1:2], answer(model, TRICLINIC).strain)


@pytest.mark.parametrize(
    "crystal",
    [
        TRICLINIC,
        Crystal.from_parameters((2.6, 2.6, 2.6, 60, 60, 60), [[0.4, 0.9, 0.1]], ["Cu"]),
        Crystal.from_parameters((3.0, 14.0, 4.0, 90, 65, 90), [[0, 0.05, 0], [0.5, 0.98, 0.5]], ["Mo", "S"]),
    ],
    ids=["triclinic", "one atom", "long and skewed"],
)
def test_neighbours_are_those_of_geometry(crystal: Crystal):
    batch = make_batch([TRICLINIC, crystal])
    edges = Neighbours(batch.lattice, batch.n_atoms, 5.0).edges(batch.frac_coords)
    mine = edges.target >= TRICLINIC.n_atoms
    i, j, _, distances = neighbour_pairs(crystal.lattice, crystal.frac_coords, 5.0)
    found = np.stack([edges.target[mine].numpy() - 4, edges.source[mine].numpy() - 4, edges.length[mine].numpy()], 1)
    wanted = np.stack([i, j, distances], 1)
    assert found.shape == wanted.shape

    def ordered(rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort(rows.round(3).T[::-1])]

    np.testing.assert_allclose(ordered(found), ordered(wanted), atol=1e-4)


def test_vector_messages_are_heard():
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=16, num_layers=2, vector_messages=True).eval()
    heard = answer(model, TRICLINIC)
    torch.nn.init.zeros_(model.denoiser.layers[1].vector_filter.weight)  # type: ignore[union-attr,arg-type]
    assert not close(answer(model, TRICLINIC).cart, heard.cart)


def test_second_order_is_the_traceless_dyad():
    unit = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    harmonics = spherical_harmonics(unit)
    for order in (slice(0, 1), slice(1, 4), slice(4, 9)):
        torch.testing.assert_close(harmonics[:, order].square().sum(1), torch.ones(5))
    dyads = 1.5 * (unit[:, :, None] * unit[:, None, :] - torch.eye(3) / 3)
    torch.testing.assert_close(symmetric_tensor(harmonics[:, 4:]), dyads)
