from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crystallm.crystal import Crystal
from crystallm.refine.batch import at_once, make_batch
from crystallm.refine.diffusion import CrystalDiffusionModel, add_noise, draw_noise
from crystallm.refine.supercells import doubled
from crystallm.train.optimizer import make_optimizers

CUBE = np.eye(3) * 4.0
ROCK_SALT = Crystal.from_parameters(
    (5.64, 5.64, 5.64, 90, 90, 90),
    [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
    ["Na"] * 4 + ["Cl"] * 4,
)


@pytest.fixture(scope="module")
def model() -> CrystalDiffusionModel:
    torch.manual_seed(0)
    return CrystalDiffusionModel(hidden_dim=16, num_layers=2, timesteps=10)


@pytest.fixture
def ignorant() -> CrystalDiffusionModel:
    """Always answers 0."""
    model = CrystalDiffusionModel(hidden_dim=16, num_layers=2, timesteps=10)
    for parameter in (model.denoiser.displace, model.denoiser.shear, model.denoiser.swell):
        torch.nn.init.zeros_(parameter.weight)
        torch.nn.init.zeros_(parameter.bias)
    return model


def test_noise_has_unit_variance_and_no_drift():
    batch = make_batch([ROCK_SALT] * 200)
    noise = draw_noise(batch, torch.Generator().manual_seed(0))
    assert float(noise.cart.view(200, 8, 3).mean(dim=1).abs().max()) < 1e-6
    assert float(noise.cart.var()) == pytest.approx(7 / 8, rel=0.05)  # a shift of the whole is taken out
    assert float(noise.strain.diagonal(dim1=1, dim2=2).var()) == pytest.approx(1, rel=0.15)
    assert float(noise.strain.square().sum(dim=(1, 2)).mean()) == pytest.approx(6, rel=0.1)
    torch.testing.assert_close(batch.n_strain, torch.full((200,), 6.0))


def test_noise_is_measured_in_angstrom_and_strain():
    batch = make_batch([ROCK_SALT])
    noise = draw_noise(batch, torch.Generator().manual_seed(1))
    fixed = add_noise(batch, noise, torch.tensor([0.1]), torch.tensor([False]))
    shift = fixed.frac_coords - batch.frac_coords
    torch.testing.assert_close((shift - shift.round()) @ batch.lattice[0], 0.1 * noise.cart, atol=1e-5, rtol=0)
    assert torch.equal(fixed.lattice, batch.lattice)
    free = add_noise(batch, noise, torch.tensor([0.1]), torch.tensor([True]))
    # L exp(S): the volume grows by exp(trace S)
    grown = torch.logdet(free.lattice[0]) - torch.logdet(batch.lattice[0])
    assert float(grown) == pytest.approx(0.01 * float(noise.strain.diagonal(dim1=1, dim2=2).sum()), abs=1e-5)


def test_an_ignorant_answer_costs_one_for_each_part(ignorant: CrystalDiffusionModel):
    model = ignorant
    loss = model.eval().loss(make_batch([ROCK_SALT] * 400))
    means = dict(zip(model.loss_names, (loss.sums / loss.counts).tolist(), strict=True))
    assert means["coordinates"] == pytest.approx(7 / 8, rel=0.05) and means["cell"] == pytest.approx(1, rel=0.15)
    assert 0 < float(loss.counts[-1]) < 400 and loss.weight == 400
    again = model.loss(make_batch([ROCK_SALT] * 400))
    assert torch.equal(loss.sums, again.sums)  # evaluation repeats itself


def test_exact_noise_is_taken_away_exactly(model: CrystalDiffusionModel, monkeypatch: pytest.MonkeyPatch):
    """With a network that knows the answer, one deterministic step or many end at the crystal that was there."""
    batch = make_batch([ROCK_SALT])
    noise = draw_noise(batch, torch.Generator().manual_seed(2))
    noisy = add_noise(batch, noise, torch.tensor([0.3]), torch.tensor([False]))
    monkeypatch.setattr(model, "predict", lambda *_: noise)
    for sigmas in ([0.3], [0.3, 0.2, 0.1, 0.02]):
        found = model.denoise(noisy, sigmas).crystals()[0]
        shift = found.frac_coords - ROCK_SALT.frac_coords
        np.testing.assert_allclose(shift - np.rint(shift), 0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "predictor_corrector"])
def test_samples_repeat_with_the_seed_and_keep_what_was_given(model: CrystalDiffusionModel, sampler):
    def draw(seed: int) -> list[Crystal]:
        return model.sample(batch_size=3, lattice=CUBE, species=["Cs", "Cl"], sampler=sampler, num_steps=4, seed=seed)

    first, second, other = draw(5), draw(5), draw(6)
    assert all(np.array_equal(a.frac_coords, b.frac_coords) for a, b in zip(first, second, strict=True))
    assert not np.allclose(first[0].frac_coords, other[0].frac_coords)
    assert [one.reduced_formula for one in first] == ["CsCl"] * 3
    np.testing.assert_allclose(first[0].lattice, CUBE)
    assert len({one.frac_coords.tobytes() for one in first}) == 3


def test_padded_crystals_of_different_size_and_generated_cells(model: CrystalDiffusionModel):
    species = np.array([[11, 17, 0, 0], [22, 8, 8, 0], [29, 0, 0, 0]])
    drawn = model.sample(batch_size=3, max_atoms=4, species=species, mask=species > 0, num_steps=3, seed=0)
    assert [one.reduced_formula for one in drawn] == ["NaCl", "TiO2", "Cu"]
    assert len({round(one.volume_ang3, 3) for one in drawn}) == 3
    cells = np.stack([CUBE, 2 * CUBE])
    drawn = model.sample(batch_size=2, lattice=cells, species=[["Al"], ["Al"] * 8], num_steps=2, seed=0)
    assert [one.n_atoms for one in drawn] == [1, 8] and math.isclose(drawn[1].volume_ang3, 512, rel_tol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"species": None}, "got None, and this model's checkpoint keeps no training compositions"),
        ({"species": ["Xx"]}, "symbols or atomic numbers from 1 to 118, got 'Xx'"),
        ({"species": [0]}, "from 1 to 118, got 0"),
        ({"species": ["Al"], "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"species": [["Al"]], "batch_size": 2}, "species of 1 crystals for batch_size=2"),
        ({"species": ["Al"], "lattice": np.zeros((2, 2))}, r"lattice must be \(3, 3\) or \(1, 3, 3\), got \(2, 2\)"),
        ({"species": ["Al"], "lattice": np.zeros((3, 3))}, "spans a volume"),
        ({"species": ["Al"], "lattice": np.full((3, 3), np.nan)}, "finite"),
        ({"species": ["Al", "Al"], "max_atoms": 1}, "2 atoms exceed max_atoms=1"),
        ({"species": ["Al"], "mask": [True, False]}, "max_atoms=2 places each, got 2 and 1"),
        ({"species": ["Al"], "mask": [[True], [True]]}, r"mask must be \(1,\) or \(1, 1\), got \(2, 1\)"),
        ({"species": ["Al"], "sampler": "euler"}, "no sampler 'euler'"),
        ({"species": ["Al"], "num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"species": ["Al"], "lattice": np.eye(3) * 0.02}, "8e-06 Å³ is too small for 1 atom"),
        (
            {"species": ["Al"], "lattice": np.diag([3e3, 3e3, 4e-7])},
            "the cell repeats every 4e-07 Å, so",
        ),
        ({"species": ["Al"], "lattice": [[3e3, 0, 0], [0, 3e3, 0], [0, 3e3, 1e-6]]}, "vectors lie in a plane"),
        ({"species": ["Al"], "lattice": [[3e30, 0, 0], [0, 3e30, 0], [0, 3, 1e-60]]}, "vectors lie in a plane"),
        ({"species": ["Al"], "corrector_steps": 0}, "corrector_steps must be at least 1, got 0"),
    ],
)
def test_bad_requests(model: CrystalDiffusionModel, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        model.sample(**arguments)


@pytest.mark.parametrize(
    "lattice, atoms, message",
    [
        (np.diag([3e3, 3e3, 4e-7]), 1, r"1 atoms .* faces are 3e\+03, 3e\+03, 4e-07 Å apart see "),
        ([[3e3, 0, 0], [0, 3e3, 0], [0, 3e3, 1e-6]], 2, "^2 atoms in a"),
        ([[3e30, 0, 0], [0, 3e30, 0], [0, 3, 1e-60]], 1, "^1 atoms in a cell"),
    ],
)
def test_flat_cells_have_too_many_neighbours(model: CrystalDiffusionModel, lattice: list, atoms: int, message: str):
    flat = Crystal(np.array(lattice, dtype=float), np.zeros((atoms, 3)), np.full(atoms, 13))
    with pytest.raises(ValueError, match=message):
        model.refine([flat], None, 0.5, 1)


def test_training_may_draw_some_widths_only(model: CrystalDiffusionModel):
    mender = CrystalDiffusionModel(model.config, trained_sigmas_ang=(0.1, 0.5)).train()
    names = [name.removeprefix("coordinates_") for name in model.loss_names]
    drawn = dict(zip(names, mender.loss(make_batch([ROCK_SALT] * 50)).counts.tolist(), strict=True))
    assert (drawn["below_0.1"], drawn["below_0.5"], drawn["above"]) == (0, 50, 0)
    assert model.generates and not mender.generates
    assert CrystalDiffusionModel(model.config, trained_sigmas_ang=(0.5, 4.0)).generates
    with pytest.raises(ValueError, match=r"trained to mend, on noise of 0\.1 to 0\.5 Å .* begin at 4 Å"):
        mender.sample(species=["Al"])
    with pytest.raises(ValueError, match=r"none of the widths, 0\.02 to 4 Å, lies in \[5, 6\]"):
        CrystalDiffusionModel(model.config, trained_sigmas_ang=(5.0, 6.0))


def test_refinement_by_an_ignorant_network_moves_nothing_and_checks_its_arguments(ignorant: CrystalDiffusionModel):
    model = ignorant
    with pytest.raises(ValueError, match=r"start_sigma_ang must be above 0\.02"):
        model.refine([ROCK_SALT], None, 0.01, 4)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        model.refine([ROCK_SALT], None, 0.2, 0)
    (same,) = model.refine([ROCK_SALT], None, 0.2, 8)
    shift = same.frac_coords - ROCK_SALT.frac_coords
    np.testing.assert_allclose(shift - np.rint(shift), 0, atol=1e-6)


def test_one_atom_and_five_hundred():
    torch.manual_seed(0)
    small = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4)
    rng = np.random.default_rng(0)
    large = Crystal(np.eye(3) * 20, rng.random((500, 3)), np.full(500, 14))
    one = Crystal(np.eye(3) * 3, np.zeros((1, 3)), np.array([84]))
    refined = small.refine([one, large], None, 0.2, 2)
    assert [crystal.n_atoms for crystal in refined] == [1, 500]


def test_bfloat16_costs_no_digits_of_places(model: CrystalDiffusionModel, monkeypatch: pytest.MonkeyPatch):
    """Under autocast the neighbours of a noisy crystal are those of float32 to the last bit, and so is the noise."""
    batch, seen = make_batch([ROCK_SALT] * 20), []
    hidden = model.eval().denoiser.forward

    def watched(batch, edges, *rest):
        seen.append(edges)
        answer = hidden(batch, edges, *rest)
        assert answer.cart.dtype == answer.strain.dtype == torch.float32
        return answer

    monkeypatch.setattr(model.denoiser, "forward", watched)
    plain = model.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = model.loss(batch)
    assert torch.equal(seen[0].vector, seen[1].vector) and torch.equal(seen[0].length, seen[1].length)
    assert not torch.equal(plain.sums, short.sums)  # its products are short, or this compares nothing
    torch.testing.assert_close(short.sums, plain.sums, rtol=0.02, atol=0.02)


def test_muon_takes_the_matrices_of_the_layers(model: CrystalDiffusionModel):
    adamw, muon = make_optimizers(model, "muon", 1e-3, 0.0, (0.9, 0.95))
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    wanted = {id(p) for name, p in model.named_parameters() if name.startswith("denoiser.layers.") and p.ndim == 2}
    assert taken == wanted and len(wanted) == 2 * 5
    others = sum(len(group["params"]) for group in adamw.param_groups)
    assert others + len(taken) == len(list(model.parameters()))


def test_batches_hold_every_crystal_once(monkeypatch: pytest.MonkeyPatch):
    sizes = [5, 300, 300, 40, 700, 1, 1]
    assert [list(places) for places in at_once(sizes)] == [[0, 1, 2], [3], [4], [5, 6]]
    assert list(at_once([])) == []
    monkeypatch.setattr("crystallm.refine.batch.ATOMS_AT_ONCE", 10)
    assert next(at_once(sizes)) == range(1)


def test_errors_of_noise_are_those_of_each_crystal_alone(model: CrystalDiffusionModel, monkeypatch):
    cube = Crystal(CUBE, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.array([55, 17]))
    alone = Crystal(CUBE, np.zeros((1, 3)), np.array([13]))
    crystals = [ROCK_SALT, cube, alone, ROCK_SALT]
    errors = model.denoising_errors(crystals, sigmas_ang=(0.1, 0.4), draws=3)
    assert errors[0] == pytest.approx(errors[3], rel=1e-5) and len({round(error, 6) for error in errors}) == 3
    for crystal, error in zip(crystals, errors, strict=True):
        assert model.denoising_errors([crystal], sigmas_ang=(0.1, 0.4), draws=3)[0] == pytest.approx(error, rel=1e-5)
    monkeypatch.setattr("crystallm.refine.batch.ATOMS_AT_ONCE", 8)
    assert model.denoising_errors(crystals, sigmas_ang=(0.1, 0.4), draws=3) == pytest.approx(errors, rel=1e-5)


def test_whoever_knows_nothing_errs_by_one_in_any_cell(ignorant: CrystalDiffusionModel):
    """The noise's own square, less a shift of the whole; of one atom, two cells are judged"""
    pair = Crystal(CUBE, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.array([55, 17]))
    for crystal in (Crystal(CUBE, np.zeros((1, 3)), np.array([13])), pair, ROCK_SALT):
        assert ignorant.denoising_errors([crystal], draws=400)[0] == pytest.approx(1, rel=0.05)


def test_the_choice_of_a_cell_of_one_atom_changes_nothing(model: CrystalDiffusionModel):
    fcc = np.array([[0, 2, 2], [2, 0, 2], [2, 2, 0.0]])
    sheared = np.array([[1, 0, 0], [2, 1, 0], [-1, 3, 1]]) @ fcc
    given = [Crystal(cell, np.array([[0.3, 0.1, 0.2]]), np.array([13])) for cell in (fcc, sheared)]
    assert given[0].volume_ang3 == pytest.approx(given[1].volume_ang3)
    short, long = (doubled(one).lattice for one in given)
    lengths = [sorted(np.linalg.norm(cell, axis=1)) for cell in (short, long)]
    assert lengths[0] == pytest.approx(lengths[1]) and lengths[0][-1] == pytest.approx(2 * 8**0.5)
    assert doubled(given[0]).n_atoms == 2
