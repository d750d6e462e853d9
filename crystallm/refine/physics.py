"""Whether atoms keep their distance: grades, warnings, and pushing overlapping atoms apart.

    report = PhysicsValidator(min_distance=0.7).correct_structure(positions, lattice, mask)
    report.positions, report.summary()  # "2 atoms moved by up to 0.20 Å in 1 iteration: 0.30 Å before, 0.71 Å after"

Distances, images and limits are those of crystallm.geometry, the filter's. Without species every pair has to keep
`min_distance`. With them each pair has to keep what `geometry.min_allowed_distance` asks of its elements, as in the
filter's check, whatever `min_distance` is: H-H at 0.74 Å is a molecule (0.50 Å asked), Fe-Fe at 1.2 Å is none (1.45 Å).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from crystallm.crystal import Crystal, Floats, Ints, wrap
from crystallm.geometry import min_allowed_distance, neighbour_pairs, reduce_lattice, shortest_distances
from crystallm.refine.compositions import Element, atomic_number

Grade = Literal["excellent", "good", "suspicious", "unphysical"]
EXCELLENT_ANG, GOOD_ANG, UNPHYSICAL_ANG = 1.0, 0.7, 0.5
DENSITIES_G_PER_CM3 = (0.5, 20.0)  # solid H₂ and Li have less than 0.6, Re to Pt 21 to 22.6: a warning, no error

COINCIDENT_ANG = 1e-3  # nearer, float32 coordinates know no direction
# Atoms are pushed a little further than they must, or the next neighbour's push brings them back: of 8 cells of NaCl
# with 100 atoms at random, 10 iterations resolve all at 1.05, 7 at 1.01 and 5 at 1.001.
MARGIN = 1.05
MAX_STEP = 1.0  # times the largest distance asked; many atoms at one place would throw each other across the cell
MAX_MIN_DISTANCE_ANG = 5.0  # beyond every covalent bond; bounds the number of images
SMALLEST_REPEAT_ANG = 0.5  # below, no atom fits, and the images within reach are more than memory holds


@dataclass(frozen=True)
class TrainingRange:
    """What a model has seen; what is beyond by more than `factor` is far from it."""

    n_atoms: tuple[int, int]
    volume_per_atom_ang3: tuple[float, float]
    factor: float = 1.5

    @classmethod
    def of(cls, crystals: Sequence[Crystal]) -> TrainingRange:
        """Least and most atoms; the volumes without the outermost 0.5 % at each end. ValueError for no crystal."""
        if not crystals:
            raise ValueError("a training range needs at least one crystal, got none")
        counts = [crystal.n_atoms for crystal in crystals]
        low, high = np.quantile([crystal.volume_ang3 / crystal.n_atoms for crystal in crystals], [0.005, 0.995])
        return cls((min(counts), max(counts)), (float(low), float(high)))

    def warnings(self, n_atoms: int, volume_per_atom_ang3: float) -> list[str]:
        found = []
        for value, (low, high), text in (
            (n_atoms, self.n_atoms, f"{n_atoms} atoms"),
            (volume_per_atom_ang3, self.volume_per_atom_ang3, f"{volume_per_atom_ang3:.3g} Å³ per atom"),
        ):
            if not low / self.factor <= value <= high * self.factor:
                found.append(f"{text}, far from the training data's {low:.3g}-{high:.3g}")
        return found


@dataclass(frozen=True)
class Verdict:
    """Of a structure as it is. A warning is no failure."""

    grade: Grade
    valid: bool  # every pair keeps what is asked of it
    min_distance_ang: float
    worst_pair: tuple[int, int]  # nearest to its limit, or furthest below; i, i: an atom and its own image
    n_atoms: int
    volume_ang3: float
    density_g_per_cm3: float | None  # None where species are not given
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """`PASSED: minimum distance 1.23 Å` or `FAILED: minimum distance 0.42 Å, atoms overlap`, and warnings."""
        i, j = self.worst_pair
        why = ", an atom meets its own image" if i == j else ", atoms overlap"
        first = f"{'PASSED' if self.valid else 'FAILED'}: minimum distance {self.min_distance_ang:.2f} Å"
        return "; warning: ".join([first + ("" if self.valid else why), *self.warnings])


@dataclass(frozen=True, eq=False)
class Correction:
    """What `correct_structure` did."""

    positions: Floats  # (n_max, 3) fractional; atoms that did not move, and padding, are as they came
    n_iterations: int
    moved: Ints  # indices of the atoms that are elsewhere now
    max_shift_ang: float
    min_distance_before_ang: float
    min_distance_after_ang: float
    resolved: bool  # every pair keeps its distance now
    own_images: Ints  # indices of atoms too near to their own image: no displacement helps, the cell is too small

    def summary(self) -> str:
        before, after = f"{self.min_distance_before_ang:.2f} Å", f"{self.min_distance_after_ang:.2f} Å"
        n, k = len(self.moved), self.n_iterations
        text = f"{n} atom{'s' * (n != 1)} moved by up to {self.max_shift_ang:.2f} Å in {k} iteration{'s' * (k != 1)}"
        text = f"{text}: {before} before, {after} after" if n else f"nothing moved: {before}"
        if len(self.own_images):
            text += f"; the cell is too small, {len(self.own_images)} of its atoms meet their own images"
        return text if self.resolved or len(self.own_images) else f"{text}, atoms still overlap"


@dataclass(frozen=True)
class PhysicsValidator:
    """Positions are fractional, (n_max, 3); the lattice has rows in Å; `mask` (n_max,) says which rows are atoms.

    `species`, (n_max,) symbols or atomic numbers, may hold anything where the mask is False. Arrays, lists and tensors
    are taken. Raises ValueError for what is no crystal: no atom, a cell without volume, NaN, an unknown element.
    """

    min_distance: float = GOOD_ANG  # Å
    training_range: TrainingRange | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_distance <= MAX_MIN_DISTANCE_ANG:
            raise ValueError(f"min_distance must be in (0, {MAX_MIN_DISTANCE_ANG:g}] Å, got {self.min_distance}")

    def validate(
        self,
        positions: ArrayLike | Tensor,
        lattice: ArrayLike | Tensor,
        mask: ArrayLike | Tensor | None = None,
        species: Sequence[Element] | ArrayLike | Tensor | None = None,
    ) -> Verdict:
        """Grade by the shortest distance, an atom's own images included: from 1.0 Å excellent, from 0.7 Å good, then
        suspicious, below 0.5 Å unphysical.

        With species a distance counts in parts of what its elements are allowed: that is where `good` begins, so
        `excellent` and `unphysical` begin at 1.43 and 0.71 of it (1.0 / 0.7, 0.5 / 0.7). Below 0.5 Å stays unphysical.
        """
        _, atoms, frac, cell, numbers = _checked(positions, lattice, mask, species)
        distances = shortest_distances(cell, frac)
        allowed = self._allowed(numbers, len(frac))
        shares = distances / allowed
        i, j = divmod(int(shares.argmin()), len(frac))
        shortest = float(distances.min())
        scaled = shortest if numbers is None else GOOD_ANG * float(shares.min())
        volume, density, warnings = abs(float(np.linalg.det(cell))), None, []
        if numbers is not None:
            density = Crystal(cell, frac, numbers).density_g_per_cm3
            low, high = DENSITIES_G_PER_CM3
            if not low <= density <= high:
                warnings.append(f"density {density:.3g} g/cm³, outside {low:g}-{high:g} g/cm³")
        if self.training_range:
            warnings += self.training_range.warnings(len(frac), volume / len(frac))
        grade: Grade = grade_of(shortest if shortest < UNPHYSICAL_ANG else scaled)
        valid = bool(shares.min() >= 1)
        pair = (int(atoms[i]), int(atoms[j]))
        return Verdict(grade, valid, shortest, pair, len(frac), volume, density, tuple(warnings))

    def correct_structure(
        self,
        positions: ArrayLike | Tensor,
        lattice: ArrayLike | Tensor,
        mask: ArrayLike | Tensor | None = None,
        max_iterations: int = 10,
        species: Sequence[Element] | ArrayLike | Tensor | None = None,
    ) -> Correction:
        """Each pair that is too near, over all images, is pushed apart along its line, both atoms by half.

        All pairs are pushed at once, so the centre of mass stays, and so does a symmetry that relates the atoms. Atoms
        on top of each other part in directions set by their indices. Of all iterations the one with the best worst pair
        is kept: no worse than what came.
        """
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        padded, atoms, start, cell, numbers = _checked(positions, lattice, mask, species)
        allowed = self._allowed(numbers, len(start))
        distances = shortest_distances(cell, start)
        own = np.flatnonzero(distances.diagonal() < allowed.diagonal())
        best, best_share, n_iterations = start, _worst_share(distances, allowed), 0
        frac = start
        possible = len(start) > 1 and distances[0, 0] >= SMALLEST_REPEAT_ANG  # the diagonal: own images
        while possible and best_share < 1 and n_iterations < max_iterations:
            frac = frac + self._push(cell, frac, allowed) @ np.linalg.inv(cell)
            n_iterations += 1
            share = _worst_share(shortest_distances(cell, frac), allowed)
            if share > best_share:
                best, best_share = frac, share
        shift = np.linalg.norm((best - start) @ cell, axis=1)  # (n,) Å
        changed = shift > 1e-9
        padded[atoms[changed]] = wrap(best[changed])
        after = shortest_distances(cell, padded[atoms]) if changed.any() else distances
        return Correction(
            positions=padded,
            n_iterations=n_iterations,
            moved=atoms[changed],
            max_shift_ang=float(shift.max()),
            min_distance_before_ang=float(distances.min()),
            min_distance_after_ang=float(after.min()),
            resolved=best_share >= 1 and not len(own),
            own_images=atoms[own],
        )

    def correct_batch(
        self,
        positions: ArrayLike | Tensor,
        lattice: ArrayLike | Tensor,
        mask: ArrayLike | Tensor,
        max_iterations: int = 10,
        species: ArrayLike | Tensor | None = None,
    ) -> list[Correction]:
        """`correct_structure` of each: positions (B, n_max, 3), lattice (3, 3) or (B, 3, 3), mask (B, n_max) or
        (n_max,), species (B, n_max) or None."""
        batch, cells, masks = _numpy(positions), _numpy(lattice), _numpy(mask)
        if batch.ndim != 3 or cells.shape not in ((3, 3), (len(batch), 3, 3)) or masks.ndim not in (1, 2):
            got = f"{batch.shape}, {cells.shape} and {masks.shape}"
            raise ValueError(f"positions (B, n, 3), lattice (B, 3, 3) or (3, 3) and mask (B, n) wanted, got {got}")
        cells = np.broadcast_to(cells, (len(batch), 3, 3))
        masks = np.broadcast_to(masks, (len(batch), masks.shape[-1]))
        atoms: Sequence[Any] = [None] * len(batch) if species is None else list(_numpy(species))
        rows = zip(batch, cells, masks, atoms, strict=True)
        return [self.correct_structure(p, cell, m, max_iterations, z) for p, cell, m, z in rows]

    def _allowed(self, numbers: Ints | None, n_atoms: int) -> Floats:
        """(n_atoms, n_atoms) Å"""
        if numbers is None:
            return np.full((n_atoms, n_atoms), self.min_distance)
        return min_allowed_distance(numbers[:, None], numbers[None, :])

    @staticmethod
    def _push(cell: Floats, frac: Floats, allowed: Floats) -> Floats:
        """(n, 3) Å"""
        i, j, image, distance = neighbour_pairs(cell, frac, MARGIN * float(allowed.max()))
        lacking = MARGIN * allowed[i, j] - distance
        close = (lacking > 0) & (i != j)
        i, j, image, distance, lacking = i[close], j[close], image[close], distance[close], lacking[close]
        vector = (frac[j] + image - frac[i]) @ cell  # (n_pairs, 3) Å, from i to j
        apart = distance >= COINCIDENT_ANG
        own_ways = _directions(len(frac))
        vector = np.where(apart[:, None], vector, own_ways[j] - own_ways[i])
        unit = vector / np.linalg.norm(vector, axis=1, keepdims=True)
        push = np.zeros_like(frac)
        np.add.at(push, i, -0.5 * lacking[:, None] * unit)  # each pair comes twice, as (i, j) and (j, i)
        furthest = float(np.linalg.norm(push, axis=1).max())
        return push * min(1.0, MAX_STEP * float(allowed.max()) / max(furthest, 1e-12))  # of all, or the centre drifts


def grade_of(distance_ang: float) -> Grade:
    if distance_ang >= EXCELLENT_ANG:
        return "excellent"
    if distance_ang >= GOOD_ANG:
        return "good"
    return "suspicious" if distance_ang >= UNPHYSICAL_ANG else "unphysical"


def _worst_share(distances: Floats, allowed: Floats) -> float:
    """Of the pairs of different atoms, which displacements can change."""
    shares = distances / allowed
    np.fill_diagonal(shares, np.inf)
    return float(shares.min())


def _directions(n: int) -> Floats:
    """(n, 3) unit vectors, no two alike: a spiral over the sphere."""
    index = np.arange(n)
    z = 1 - (2 * index + 1) / n
    around, radius = index * np.pi * (3 - np.sqrt(5)), np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(around), radius * np.sin(around), z], axis=1)


def _numpy(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _places(mask: Any, n_max: int) -> Ints:
    """Indices of the rows that are atoms. Raises ValueError."""
    if mask is None:
        return np.arange(n_max)
    marks = _numpy(mask)
    if marks.shape != (n_max,):
        raise ValueError(f"mask has one place for each of the {n_max} positions, got shape {marks.shape}")
    if not np.isin(marks, (0, 1)).all():
        raise ValueError(f"mask is True where there is an atom and False elsewhere, got {marks.tolist()}")
    return np.flatnonzero(marks)


class _Checked(NamedTuple):
    padded: Floats  # (n_max, 3), a copy
    atoms: Ints  # (n,) their rows
    frac: Floats  # (n, 3)
    lattice: Floats
    numbers: Ints | None  # (n,)


def _checked(positions: Any, lattice: Any, mask: Any, species: Any) -> _Checked:
    """Raises ValueError."""
    padded = np.array(_numpy(positions), dtype=np.float64)
    cell = np.array(_numpy(lattice), dtype=np.float64)
    if padded.ndim != 2 or padded.shape[1] != 3:
        raise ValueError(f"positions are (n, 3) fractional coordinates, got shape {padded.shape}")
    atoms = _places(mask, len(padded))
    if not len(atoms):
        raise ValueError(f"no atom in the cell: {len(padded)} positions, none of them in the mask")
    reduce_lattice(cell)  # says what is wrong with it
    if not np.isfinite(padded[atoms]).all():
        row = int(atoms[~np.isfinite(padded[atoms]).all(axis=1)][0])
        raise ValueError(f"positions must be finite, got {padded[row].tolist()} at atom {row}")
    if species is None:
        return _Checked(padded, atoms, padded[atoms], cell, None)
    elements = species.tolist() if isinstance(species, (np.ndarray, Tensor)) else list(species)
    if len(elements) != len(padded):
        raise ValueError(f"species has one element for each of the {len(padded)} positions, got {len(elements)}")
    numbers = np.array([atomic_number(elements[k]) for k in atoms], dtype=np.int64)
    return _Checked(padded, atoms, padded[atoms], cell, numbers)
