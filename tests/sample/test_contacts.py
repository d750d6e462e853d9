"""Masks of coordinates against distances computed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from crystallm.crystal import lattice_from_parameters
from crystallm.geometry import reduce_lattice, shortest_distances
from crystallm.sample.contacts import Contacts, orbit
from crystallm.space_groups import SpaceGroup, space_group

N_VALUES = 40  # a coarse grid keeps the brute force short


def random_cell(group: SpaceGroup, rng: np.random.Generator, shortest: float, longest: float) -> np.ndarray:
    """(3, 3) lattice with the ties of the crystal system and no lattice vector below 2 Å."""
    while True:
        lengths = rng.uniform(shortest, longest, 3)
        for later, first in group.ties.equal_lengths:
            lengths[later] = lengths[first]
        angles = [rng.uniform(70, 110) if angle is None else angle for angle in group.ties.angles]
        lattice = lattice_from_parameters(*lengths, *angles)
        primitive = group.translations[(group.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))]
        vectors = [reduce_lattice(lattice)[0][0], *(shortest_image(lattice, t) for t in primitive[1:])]
        if min(np.linalg.norm(vector) for vector in vectors) > 2:
            return lattice


def shortest_image(lattice: np.ndarray, frac: np.ndarray) -> float:
    return shortest_distances(lattice, frac, np.zeros(3))[0, 0]


def is_free(lattice: np.ndarray, images: np.ndarray, others: np.ndarray, limits: np.ndarray, own_limit: float) -> bool:
    """Whether one site's images keep `own_limit` among themselves, and `limits` to the others."""
    own = shortest_distances(lattice, images)
    np.fill_diagonal(own, np.inf)
    return own.min() >= own_limit and (shortest_distances(lattice, images[:1], others) >= limits).all()


@pytest.mark.parametrize("number", [1, 2, 5, 8, 14, 15, 31, 44, 62, 88, 129, 141, 152, 166, 186, 194, 198, 216, 227])
def test_mask_equals_brute_force(number: int) -> None:
    rng = np.random.default_rng(number)
    group = space_group(number)
    allowed = np.array([[1.9, 1.6], [1.6, 1.2]])
    for trial in range(3):
        lattice = random_cell(group, rng, *((2.2, 4.0) if trial == 0 else (4.0, 9.0)))
        contacts = Contacts(number, lattice, allowed, N_VALUES)
        for element in rng.integers(0, 2, 2).tolist():
            site = orbit(number, int(rng.integers(len(group.wyckoff))))
            contacts.place(site, np.where(np.isin(range(3), site.position.free_axes), rng.random(3), 0), element)
        placed, limits = contacts.points, allowed[1, contacts.elements]
        for position in group.wyckoff:
            if position.n_free == 0:
                continue
            site, axis = orbit(number, position.index), position.free_axes[-1]
            frac = np.zeros(3)
            for earlier in position.free_axes[:-1]:
                frac[earlier] = rng.integers(N_VALUES) / N_VALUES
            mask = contacts.coordinate_mask(site, axis, frac, 1)
            # what depends on earlier coordinates alone was decided with them
            for earlier in position.free_axes[:-1]:
                k = round(frac[earlier] * N_VALUES)
                before = np.where(np.arange(3) < earlier, frac, 0)
                mask = mask & contacts.coordinate_mask(site, earlier, before, 1)[k]
            if contacts.blocked(1)[0] >> position.index & 1:
                mask = np.zeros_like(mask)
            for k in range(N_VALUES):
                frac[axis] = k / N_VALUES
                expected = is_free(lattice, position.orbit(frac), placed, limits, 1.2)
                assert mask[k] == expected, (trial, position.letter, frac)


@pytest.mark.parametrize("number", [5, 62, 123, 194, 221, 227])
def test_blocked_among_what_still_fits(number: int) -> None:
    """Positions of more atoms than are left are not looked at: of the others the answer is the same."""
    rng = np.random.default_rng(number)
    wyckoff = space_group(number).wyckoff
    for n_atoms in sorted({position.multiplicity for position in wyckoff}):
        contacts = [Contacts(number, np.eye(3) * 3.0, np.array([[1.9, 1.6], [1.6, 1.2]])) for _ in range(2)]
        site = orbit(number, int(rng.integers(len(wyckoff))))
        frac = np.where(np.isin(range(3), site.position.free_axes), rng.random(3), 0)
        for one in contacts:
            one.blocked(1, *([] if one is contacts[0] else [n_atoms]))  # before and after a site is placed
            one.place(site, frac, 0)
        everything, fitting = contacts[0].blocked(1)[0], contacts[1].blocked(1, n_atoms)[0]
        fits = sum(1 << p.index for p in wyckoff if p.multiplicity <= n_atoms)
        assert everything & fits == fitting & fits
        for line in (p for p in wyckoff if p.n_free == 1):
            masks = [
                one.coordinate_mask(orbit(number, line.index), line.free_axes[0], np.zeros(3), 1) for one in contacts
            ]
            np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("number", [2, 47, 123, 166, 191, 221, 225, 227, 230])
def test_blocked_points_equal_brute_force(number: int) -> None:
    rng = np.random.default_rng(number)
    group, allowed = space_group(number), np.array([[1.9, 1.6], [1.6, 1.2]])
    for _ in range(5):
        lattice = random_cell(group, rng, 2.1, 8.0)
        contacts = Contacts(number, lattice, allowed)
        general = orbit(number, len(group.wyckoff) - 1)
        contacts.place(general, rng.random(3), 0)
        limits = allowed[:, contacts.elements]
        for element, mask in enumerate(contacts.blocked(0)):
            for position in (p for p in group.wyckoff if p.n_free == 0):
                images = position.orbit(np.zeros(3))
                free = is_free(lattice, images, contacts.points, limits[element], allowed[element, element])
                assert bool(mask >> position.index & 1) != free, (position.letter, element)


def test_special_positions_are_closed_to_the_general_one() -> None:
    # P-1, x = (0, 0, z): at z = 0 and 1/2 the site meets its own image.
    contacts = Contacts(2, np.eye(3) * 8, np.array([[1.6]]))
    mask = contacts.coordinate_mask(orbit(2, 8), 2, np.zeros(3), 0)
    assert np.flatnonzero(~mask).tolist() == [*range(101), *range(400, 601), *range(900, 1000)], "0.8 Å around each"
