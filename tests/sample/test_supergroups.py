"""The table against spglib: structures with random coordinates and random cells."""

import itertools

import numpy as np
import pytest

from crystallm.crystal import Crystal, lattice_from_parameters
from crystallm.sample.occupation import occupation
from crystallm.sample.supergroups import can_escape, has_supergroup
from crystallm.space_groups import space_group
from crystallm.symmetry import find_space_group


@pytest.mark.parametrize(
    "symbol, letters, higher",
    [
        ("F-43m", "a b", True),  # rock salt
        ("F-43m", "a c", False),  # zinc blende
        ("Fm-3m", "a b", False),
        ("Fm-3m", "a c", False),  # fluorite
        ("I-43m", "a", True),  # body-centred cubic
        ("Pm-3m", "a b c", False),  # perovskite
        ("P-3", "a d", True),  # brucite without hydrogen: P-3m1, whatever z is
        ("P6_3/mmc", "c", False),  # hexagonal close packing
        ("P6_3/mmc", "a", True),  # simple hexagonal, half the cell
    ],
)
def test_known_structures(symbol, letters, higher):
    group = space_group(symbol)
    assert has_supergroup(group.number, [[group.position(x).index] for x in letters.split()]) is higher


@pytest.mark.parametrize("number", range(3, 231, 3))
def test_as_spglib_finds(number):
    group, rng = space_group(number), np.random.default_rng(number)
    for _ in range(4):
        letters = [[int(rng.integers(len(group.wyckoff)))] for _ in range(rng.integers(1, 4))]
        if len({index for (index,) in letters if group.wyckoff[index].n_free == 0}) < sum(
            group.wyckoff[index].n_free == 0 for (index,) in letters
        ):
            continue  # two elements on one point
        lengths = rng.uniform(9, 15, 3)
        for i, j in group.ties.equal_lengths:
            lengths[i] = lengths[j]
        angles = [rng.uniform(95, 115) if angle is None else angle for angle in group.ties.angles]
        points = [group.wyckoff[index].orbit(rng.random(3)) for (index,) in letters]
        numbers = np.repeat(np.arange(11, 11 + len(points)), [len(p) for p in points])
        crystal = Crystal(lattice_from_parameters(*lengths, *angles), np.concatenate(points), numbers)
        found = find_space_group(crystal, symprec=1e-4).number
        if has_supergroup(number, letters):
            assert found != number
        elif not group.normaliser.polar.any():  # along a polar axis the table leaves out what depends on the origin
            assert found == number, letters


@pytest.mark.parametrize("number", [47, 99, 123, 156, 166, 191, 200, 207, 215, 216, 217, 221, 225, 229])
def test_escape_equals_trying_every_choice(number):
    """Two and three elements with one to four atoms each in the primitive cell."""
    group = occupation(number)

    def choices(count, start, taken):
        if count == 0:
            yield (), taken
        for letter in range(start, len(group.multiplicity)):
            if group.multiplicity[letter] <= count and not taken >> letter & 1:
                after = taken | 1 << letter if group.is_point[letter] else taken
                for more, last in choices(count - group.multiplicity[letter], letter, after):
                    yield (letter, *more), last

    def escapes(counts, letters=(), taken=0):
        if not counts:
            return not has_supergroup(number, letters)
        return any(escapes(counts[1:], (*letters, sites), last) for sites, last in choices(counts[0], 0, taken))

    for counts in itertools.product((1, 2, 3, 4), (1, 2, 3)):
        atoms = tuple(count * group.n_centring for count in counts)
        assert (group.feasible(atoms) and can_escape(number, atoms)) == escapes(atoms), counts
    for counts in ((1, 1, 1), (1, 1, 3), (2, 2, 1)):
        atoms = tuple(count * group.n_centring for count in counts)
        assert (group.feasible(atoms) and can_escape(number, atoms)) == escapes(atoms), counts
