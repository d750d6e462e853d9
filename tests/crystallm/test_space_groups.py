"""The tables against spglib and against the definitions."""

import numpy as np
import pytest
import spglib

from crystallm.space_groups import SpaceGroupError, cell_ties, space_group, space_group_number, space_group_symbols

ALL = range(1, 231)


def as_set(rotations, translations):
    steps = np.rint(np.asarray(translations) * 24).astype(int) % 24
    return {(*w.ravel().tolist(), *t.tolist()) for w, t in zip(np.asarray(rotations), steps, strict=True)}


@pytest.mark.parametrize("number", ALL)
def test_operations_are_those_of_the_stated_hall_number(number):
    group = space_group(number)
    database = spglib.get_symmetry_from_database(group.hall_number)
    assert as_set(group.rotations, group.translations) == as_set(database["rotations"], database["translations"])
    info = spglib.get_spacegroup_type(group.hall_number)
    assert (info.number, info.international_short) == (number, group.symbol)
    assert np.array_equal(group.rotations[0], np.eye(3)) and not group.translations[0].any()


@pytest.mark.parametrize("number", ALL)
def test_positions(number):
    group = space_group(number)
    rng = np.random.default_rng(number)
    assert group.wyckoff[-1].multiplicity == len(group.rotations)
    assert [p.index for p in group.wyckoff] == list(range(len(group.wyckoff)))
    for position in group.wyckoff:
        orbit = position.orbit(rng.random(3))
        assert orbit.shape == (position.multiplicity, 3)
        # closed under the group, and all points distinct
        images = np.einsum("nij,mj->nmi", group.rotations, orbit) + group.translations[:, None]
        delta = images[:, :, None] - orbit[None, None]
        near = (np.abs(delta - np.rint(delta)) < 1e-6).all(-1)
        assert (near.sum(-1) == 1).all()
        point = position.coordinates(rng.random(3))
        assert position.holds(point) and np.allclose(position.coordinates(point), point)
        assert np.array_equal(
            position.coordinates(np.round(point, 9))[list(position.free_axes)].shape, (position.n_free,)
        )


def test_letters_are_those_of_spglib():
    """A crystal with one atom on each position: spglib names the same letters in the same setting."""
    rng = np.random.default_rng(0)
    for number in (12, 62, 96, 136, 141, 166, 186, 194, 216, 221, 225, 227, 229):
        group = space_group(number)
        lengths = np.array([9.0, 10.0, 11.0])
        for i, j in group.ties.equal_lengths:
            lengths[i] = lengths[j]
        angles = [angle or 100.0 for angle in group.ties.angles]
        a, b, c = lengths
        beta, gamma = np.radians(angles[1]), np.radians(angles[2])
        lattice = [[a, 0, 0], [b * np.cos(gamma), b * np.sin(gamma), 0], [c * np.cos(beta), 0, c * np.sin(beta)]]
        points, kinds, letters = [], [], []
        for position in group.wyckoff:
            orbit = position.orbit(rng.random(3))
            points += orbit.tolist()
            kinds += [position.index + 1] * len(orbit)
            letters += [position.letter] * len(orbit)
        dataset = spglib.get_symmetry_dataset((lattice, points, kinds), symprec=1e-3, hall_number=group.hall_number)
        assert dataset.number == number and list(dataset.wyckoffs) == letters


@pytest.mark.parametrize("number", ALL)
def test_normaliser_maps_group_and_positions_to_themselves(number):
    group = space_group(number)
    operations = as_set(group.rotations, group.translations)
    rng = np.random.default_rng(number)
    cosets = group.normaliser
    for k in rng.permutation(len(cosets.rotations))[:12]:
        m, t = cosets.rotations[k], cosets.translations[k]
        inverse = np.rint(np.linalg.inv(m)).astype(int)
        assert round(np.linalg.det(m)) == 1
        rotations = m @ group.rotations @ inverse
        translations = group.translations @ m.T + t - (rotations @ t)
        assert as_set(rotations, translations) == operations
        for position in group.wyckoff:
            image = m @ position.coordinates(rng.random(3)) + t
            op = cosets.operations[k, position.index]
            point = group.rotations[op] @ image + group.translations[op]
            assert group.wyckoff[cosets.letters[k, position.index]].holds(point)


@pytest.mark.parametrize(
    "spelling, number",
    [
        ("Pm-3m", 221), ("P m -3 m", 221), ("P4/mmm", 123), ("P2_1/c", 14), ("P21/c", 14), ("P 1 21/c 1", 14),
        ("P2(1)/c", 14), ("I2/a", 15), ("R-3m:H", 166), ("r -3 m", 166), ("Fd-3m:2", 227), ("Pbnm", 62), ("Fm3m", 225),
        (" 62 ", 62), (62, 62), ("P4_2", 77), ("P 4 2 2", 89), ("Oh^5", 225),
        ("Cmca", 64), ("Abm2", 39), ("F 4/m m m", 139),
    ],
)  # fmt: skip
def test_spellings(spelling, number):
    assert space_group_number(spelling) == number


@pytest.mark.parametrize(
    "bad, closest", [("Fm-3x", "Fm-3"), ("Pnmaa", "Pnma"), (0, "outside 1-230"), (231, "outside 1-230")]
)
def test_unknown_names_are_answered_with_the_closest(bad, closest):
    with pytest.raises(SpaceGroupError, match=closest):
        space_group(bad)


def test_every_symbol_is_its_own_spelling():
    assert [space_group_number(symbol) for symbol in space_group_symbols()] == list(ALL)


def test_unknown_letter():
    with pytest.raises(SpaceGroupError, match=r"Pnma \(no. 62\) has no Wyckoff position 'z'; it has abcd"):
        space_group(62).position("z")


def test_ties():
    assert cell_ties("cubic").equal_lengths == ((1, 0), (2, 0))
    assert space_group(194).ties.angles == (90.0, 90.0, 120.0)
    assert [space_group(n).n_centring for n in (1, 5, 146, 229, 225)] == [1, 2, 3, 2, 4]
