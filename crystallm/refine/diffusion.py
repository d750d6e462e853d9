"""The diffusion model: noise on the torus of coordinates, and on the cell when asked; training loss and samplers.

Noise is a displacement in Å, so it means the same in every cell; wrapped into the cell it is a wrapped normal. The
network learns the noise itself: given the wrapped position, its mean is minus sigma times the score of the wrapped
normal (denoising score matching, Vincent 2011, holds on the torus as well, since windings are one more thing to
average over). Cells are strained, L_t = L_0 exp(s E) with E symmetric and Gaussian, s = STRAIN_PER_ANG sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from crystallm.crystal import Crystal, Floats
from crystallm.periodic.neighbours import Neighbours
from crystallm.periodic.precision import exactly
from crystallm.refine.batch import CrystalBatch, at_once, make_batch
from crystallm.refine.compositions import Lattices, Species, TrainingCells, start_crystals
from crystallm.refine.denoiser import Denoiser, Noise
from crystallm.refine.orbits import Orbits
from crystallm.refine.schedule import SIGMA_MAX_ANG, SIGMA_MIN_ANG, ScheduleName, make_schedule
from crystallm.refine.supercells import doubled

Sampler = Literal["ddim", "ancestral", "predictor_corrector"]
Keep = Callable[[CrystalBatch, float], None]  # called with what there is at a noise level, and the level in Å
STRAIN_PER_ANG = 0.1  # a cell edge of 10 Å changes as much as an atom moves
JUDGING_SIGMAS_ANG = (0.1, 0.2, 0.4)  # noise that hides a crystal little, and a glass much
CORRECTOR_SNR = 0.16  # of the Langevin step; Song et al. 2021, appendix G


@dataclass(frozen=True)
class DiffusionConfig:
    hidden_dim: int = 128
    num_layers: int = 4
    timesteps: int = 200
    schedule: ScheduleName = "geometric"
    sigma_min_ang: float = SIGMA_MIN_ANG
    sigma_max_ang: float = SIGMA_MAX_ANG
    cutoff_ang: float = 5.0
    vector_messages: bool = False  # of the denoiser: it learns in fewer steps, each of them slower
    free_cell: float = 0.5  # share of training in which the cell is noisy too; 0: cells are always given
    trained_sigmas_ang: tuple[float, float] | None = None  # least and greatest width trained; None: the schedule's

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_layers", "cutoff_ang"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.free_cell <= 1:
            raise ValueError(f"free_cell must be in [0, 1], got {self.free_cell}")
        schedule = make_schedule(self.schedule, self.timesteps, self.sigma_min_ang, self.sigma_max_ang)
        if self.trained_sigmas_ang and not len(self.trained(schedule.sigma_ang)):
            low, high = self.trained_sigmas_ang
            raise ValueError(
                f"trained_sigmas_ang: none of the widths, {self.sigma_min_ang:g} to {self.sigma_max_ang:g} Å, "
                f"lies in [{low:g}, {high:g}]"
            )

    def trained(self, sigmas_ang: Floats) -> Floats:
        """Those of these widths that training draws."""
        low, high = self.trained_sigmas_ang or (0.0, math.inf)
        return sigmas_ang[(sigmas_ang >= low) & (sigmas_ang <= high)]


@dataclass(frozen=True, eq=False)
class Loss:
    """As train.trainer.LossLike: squared errors of unit noise, a mean for each crystal."""

    total: Tensor
    structures: int
    sums: Tensor
    counts: Tensor

    @property
    def weight(self) -> int:
        return self.structures


class CrystalDiffusionModel(nn.Module):
    """`CrystalDiffusionModel(hidden_dim=128, num_layers=4, timesteps=200)`, or with a DiffusionConfig."""

    loss_names = (
        "error_per_structure",
        "coordinates",
        "coordinates_below_0.1",
        "coordinates_below_0.5",
        "coordinates_above",
        "cell",
    )

    def __init__(self, config: DiffusionConfig | None = None, **settings: Any):
        super().__init__()
        self.config = config = replace(config or DiffusionConfig(), **settings)
        widths = (config.sigma_min_ang, config.sigma_max_ang)
        self.schedule = make_schedule(config.schedule, config.timesteps, *widths)
        self.training_cells: TrainingCells | None = None  # what `sample` draws compositions from; load_refiner sets it
        self.denoiser = Denoiser(
            config.hidden_dim, config.num_layers, config.cutoff_ang, vector_messages=config.vector_messages
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, whose matrices are Muon's."""
        return self.denoiser.layers

    @property
    def generates(self) -> bool:
        """Whether it was trained on the noise that `sample` begins with; otherwise it mends only."""
        return self.schedule.sigma_ang[-1] in self.config.trained(self.schedule.sigma_ang)

    def neighbours(self, batch: CrystalBatch) -> Neighbours:
        return Neighbours(batch.lattice, batch.n_atoms, self.config.cutoff_ang)

    def predict(self, batch: CrystalBatch, sigma_ang: Tensor, cell_is_free: Tensor, near: Neighbours) -> Noise:
        with exactly(batch.lattice.device):
            edges = near.edges(batch.frac_coords)
        return self.denoiser(batch, edges, sigma_ang, cell_is_free)

    # ---------------------------------------------------------------- training

    def loss(self, batch: CrystalBatch) -> Loss:
        """At a random time step for each crystal; in evaluation mode the same ones every time."""
        generator = None
        if not self.training:
            generator = torch.Generator(batch.lattice.device).manual_seed(len(batch.crystal))
        n, device = batch.n_crystals, batch.lattice.device
        trained = self.config.trained(self.schedule.sigma_ang)
        sigmas = torch.as_tensor(trained, dtype=torch.float32, device=device)
        sigma = sigmas[torch.randint(len(sigmas), (n,), generator=generator, device=device)]
        cell_is_free = torch.rand(n, generator=generator, device=device) < self.config.free_cell
        with exactly(batch.lattice.device):
            noise = draw_noise(batch, generator)
            noisy = add_noise(batch, noise, sigma, cell_is_free)
            near = self.neighbours(noisy)
        found = self.predict(noisy, sigma, cell_is_free, near)
        atom_errors = (found.cart - noise.cart).square().sum(dim=1)  # (N,)
        errors = batch.mean(atom_errors[:, None])[:, 0]
        free = batch.mean(batch.n_free.to(errors.dtype)[:, None])[:, 0]  # directions of an atom
        moves = (free > 0) & ((batch.n_atoms > 1) | batch.is_symmetric)
        coordinates = torch.where(moves, errors / free.clamp(min=1e-3), 0.0)  # (B,) 1 for an ignorant answer
        strain_errors = (found.strain - noise.strain).square().sum(dim=(1, 2))
        cell = torch.where(cell_is_free, strain_errors / batch.n_strain, 0.0)
        each = coordinates + cell
        with torch.no_grad():
            low, middle = moves & (sigma < 0.1), moves & (sigma >= 0.1) & (sigma < 0.5)
            parts = [torch.ones_like(moves), moves, low, middle, moves & (sigma >= 0.5), cell_is_free]
            counts = torch.stack([part.float().sum() for part in parts])
            values = (each, coordinates, coordinates, coordinates, coordinates, cell)
            sums = torch.stack([(v * p).sum() for v, p in zip(values, parts, strict=True)])
        return Loss(each.sum(), n, sums, counts)

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def denoise(
        self,
        batch: CrystalBatch,
        sigmas_ang: Sequence[float],
        free_cell: bool = False,
        sampler: Sampler = "ddim",
        generator: torch.Generator | None = None,
        keep: Keep | None = None,
        corrector_steps: int = 1,
    ) -> CrystalBatch:
        """From crystals with noise of width sigmas_ang[0] down through the others to none.

        Symmetric crystals stay so: only their free parameters move. ddim draws nothing. `keep` sees the batch at each
        level, from the noise to the end at 0. `corrector_steps`: of predictor_corrector, at each width; more of them
        are a slower annealing.
        """
        if sampler not in get_args(Sampler):
            raise ValueError(f"no sampler {sampler!r}; there are {', '.join(get_args(Sampler))}")
        if corrector_steps < 1:
            raise ValueError(f"corrector_steps must be at least 1, got {corrector_steps}")
        self.eval()
        cell_is_free = torch.full((batch.n_crystals,), free_cell, device=batch.lattice.device)
        near = self.neighbours(batch)
        if keep:
            keep(batch, sigmas_ang[0])
        for sigma, after in zip(sigmas_ang, [*sigmas_ang[1:], 0.0], strict=True):
            noise = self._noise(batch, sigma, cell_is_free, near)
            if sampler == "ddim":
                batch = _shifted(batch, noise, after - sigma, free_cell)
            else:  # Song et al. 2021, eq. 9 of the appendix on ancestral sampling
                batch = _shifted(batch, noise, (after**2 - sigma**2) / sigma, free_cell)
                fresh = after * math.sqrt(max(sigma**2 - after**2, 0)) / sigma
                batch = _shifted(batch, draw_noise(batch, generator), fresh, free_cell)
            near = self.neighbours(batch) if free_cell else near
            for _ in range(corrector_steps if sampler == "predictor_corrector" and after > 0 else 0):
                noise = self._noise(batch, after, cell_is_free, near)
                fresh_noise = draw_noise(batch, generator)
                step = 2 * (CORRECTOR_SNR * after) ** 2  # of score ascent; the score is -noise / sigma
                batch = _shifted(batch, noise, -step / after, False)
                batch = _shifted(batch, fresh_noise, math.sqrt(2 * step), False)
            if keep:
                keep(batch, after)
        return batch

    def _noise(self, batch: CrystalBatch, sigma: float, cell_is_free: Tensor, near: Neighbours) -> Noise:
        """The network's answer, made exactly as symmetric as the crystal is."""
        sigmas = torch.full((batch.n_crystals,), sigma, device=batch.lattice.device)
        noise = self.predict(batch, sigmas, cell_is_free, near)
        return Noise(batch.following(noise.cart), batch.allowed_strain(noise.strain))

    def refine(
        self,
        crystals: Sequence[Crystal],
        orbits: Sequence[Orbits | None] | None,
        start_sigma_ang: float,
        num_steps: int,
        free_cell: bool = False,
        shaken_ang: float = 0.0,
        seed: int = 0,
    ) -> list[Crystal]:
        """The crystals, taken for noisy ones of width `start_sigma_ang`, without that noise.

        With orbits only free parameters move. Noise of the width `shaken_ang` is drawn and moves the atoms first, which
        takes them from places that a symmetry holds them at; without it nothing is random. Steps fall in equal ratios
        from the width to the schedule's least.
        """
        if not start_sigma_ang > self.config.sigma_min_ang:
            raise ValueError(f"start_sigma_ang must be above {self.config.sigma_min_ang}, got {start_sigma_ang}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        batch = make_batch(crystals, orbits).to(next(self.parameters()).device)
        if shaken_ang:
            batch = batch.moved(shaken_ang * draw_noise(batch, torch.Generator().manual_seed(seed)).cart)
        sigmas = np.geomspace(start_sigma_ang, self.config.sigma_min_ang, num_steps).tolist()
        return self.denoise(batch, sigmas, free_cell).crystals()

    def sample(
        self,
        batch_size: int = 1,
        lattice: Lattices | None = None,
        species: Species | None = None,
        max_atoms: int | None = None,
        mask: np.ndarray | Tensor | None = None,
        num_steps: int | None = None,
        sampler: Sampler = "ancestral",
        seed: int | None = None,
        keep: Keep | None = None,
        corrector_steps: int = 1,
    ) -> list[Crystal]:
        """`batch_size` crystals from noise.

        `lattice` (3, 3) or (batch_size, 3, 3), Å; without it the cells are generated too. `species`: symbols or atomic
        numbers of one crystal, or a list of them for each. Padded, species is (batch_size, max_atoms) and `mask` says
        which places hold atoms. Without species each crystal takes those of a random training crystal, of as many atoms
        as its row of `mask` has places, else of at most `max_atoms`, and of about the volume of its lattice.
        `num_steps`: of the schedule's, by default all; `corrector_steps` as in `denoise`. The same seed gives the same
        crystals. `keep` sees the way there, as in `denoise`.
        Raises ValueError for cells or species that cannot be, where no training crystal fits what is asked, or for a
        model that was trained on less noise than this begins with.
        """
        if not self.generates:
            least, most = self.config.trained_sigmas_ang or (0.0, 0.0)
            raise ValueError(
                f"this model was trained to mend, on noise of {least:g} to {most:g} Å "
                f"(refiner.trained_sigmas_ang); crystals from noise begin at {self.config.sigma_max_ang:g} Å"
            )
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        generator = torch.Generator().manual_seed(seed) if seed is not None else torch.Generator()
        if seed is None:
            generator.seed()
        crystals = start_crystals(batch_size, lattice, species, max_atoms, mask, generator, self.training_cells)
        batch = make_batch(crystals).to(next(self.parameters()).device)
        free_cell = lattice is None
        if free_cell:
            batch = batch.strained(STRAIN_PER_ANG * self.config.sigma_max_ang * draw_noise(batch, generator).strain)
        steps = num_steps or len(self.schedule.sigma_ang)
        places = np.linspace(len(self.schedule.sigma_ang) - 1, 0, min(steps, len(self.schedule.sigma_ang)))
        sigmas = self.schedule.sigma_ang[np.rint(places).astype(int)].tolist()
        return self.denoise(batch, sigmas, free_cell, sampler, generator, keep, corrector_steps).crystals()

    @torch.no_grad()
    def denoising_errors(
        self,
        crystals: Sequence[Crystal],
        sigmas_ang: Sequence[float] = JUDGING_SIGMAS_ANG,
        draws: int = 2,
        seed: int = 0,
    ) -> Floats:
        """(n,) how badly the network tells which noise was added to each crystal: its mean squared error over the
        noise's mean square.

        Near 0 for a crystal as it knows them, about 1 where it can tell nothing, in cells of any size. Crystals of as
        many atoms get the same noise, whatever is judged beside them, so structures of one composition compare;
        weighed by the widths, such errors bound the negative log-likelihood (Ho et al. 2020, section 3.4). The atoms'
        noise alone, and without a shift of the whole: one atom in its cell would have none, so two cells are judged.
        """
        self.eval()
        device = next(self.parameters()).device
        judged = [doubled(one) if one.n_atoms == 1 else one for one in crystals]
        noises: dict[int, Tensor] = {}  # by number of atoms: (draws, n_sigmas, n_atoms, 3)
        for n in {one.n_atoms for one in judged}:
            generator = torch.Generator().manual_seed(seed)
            noises[n] = torch.randn(draws, len(sigmas_ang), n, 3, generator=generator)
        errors = np.zeros(len(judged))
        for places in at_once(one.n_atoms for one in judged):
            clean = make_batch([judged[place] for place in places]).to(device)
            near, given = self.neighbours(clean), torch.zeros(clean.n_crystals, dtype=torch.bool, device=device)
            noise = torch.cat([noises[n] for n in clean.n_atoms.tolist()], dim=2).to(device)
            left = 1 - 1 / clean.n_atoms  # of a mean square of 1, once the shift is taken out
            for drawn in noise:
                for sigma, unit in zip(sigmas_ang, drawn, strict=True):
                    cart = clean.centred(unit)
                    found = self._noise(clean.moved(sigma * cart), sigma, given, near).cart
                    error = clean.mean((found - cart).square()).mean(dim=1) / left
                    errors[places.start : places.stop] += error.double().cpu().numpy()
        return errors / (draws * len(sigmas_ang))


def draw_noise(batch: CrystalBatch, generator: torch.Generator | None = None) -> Noise:
    """Unit noise: for each atom as far as its site is free, without a shift of the whole; for each cell likewise."""
    device = batch.lattice.device

    def normal(*shape: int) -> Tensor:
        if generator is None or generator.device.type == device.type:
            return torch.randn(*shape, generator=generator, device=device)
        return torch.randn(*shape, generator=generator).to(device)

    cart = batch.centred(batch.following(normal(len(batch.crystal), 3)))
    matrix = normal(batch.n_crystals, 3, 3)
    return Noise(cart, batch.allowed_strain((matrix + matrix.transpose(1, 2)) / 2))


def add_noise(batch: CrystalBatch, noise: Noise, sigma_ang: Tensor, cell_is_free: Tensor) -> CrystalBatch:
    """sigma_ang (B,); cells are strained only where they are free."""
    moved = batch.moved(sigma_ang[batch.crystal][:, None] * noise.cart)
    width = torch.where(cell_is_free, STRAIN_PER_ANG * sigma_ang, 0.0)
    return moved.strained(width[:, None, None] * noise.strain)


def _shifted(batch: CrystalBatch, noise: Noise, width_ang: float, free_cell: bool) -> CrystalBatch:
    batch = batch.moved(width_ang * noise.cart)
    return batch.strained(STRAIN_PER_ANG * width_ang * noise.strain) if free_cell else batch
