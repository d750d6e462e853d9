"""Generate resources/space_groups.npz, the tables of the 230 groups:  python bin/make_space_group_tables.py

Run by maintainers only. Wyckoff positions come from pyxtal (the letters and representatives of the International
Tables, vol. A: unique axis b, cell choice 1; hexagonal axes; origin choice 2), spellings of the symbols from
spglib's 530 settings. Stabilisers and normalisers are searched for here, in exact integers (translations in 24ths).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gemmi
import numpy as np
import spglib

from crystallm.resources import project_root
from crystallm.space_groups import crystal_system

if TYPE_CHECKING:
    from pyxtal.symmetry import Wyckoff_position

DENOMINATOR = 24
OF_GROUP = ("symbol", "hall_number", "shift", "rotations", "translations", "op_start", "polar", "maps", "map_start")
OF_POSITION = (
    *("letter", "multiplicity", "linear", "offset", "position_start"),
    *("orbit", "orbit_start", "stabiliser", "stabiliser_start"),
)
OF_COSET = ("coset_m", "coset_t", "coset_start", "coset_letter", "coset_op", "image_start")


def operations_of(position: Wyckoff_position) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 3) linear parts and (n, 3) translations in 24ths of a pyxtal Wyckoff position."""
    linear = np.array([op.rotation_matrix for op in position.ops])
    offset = np.array([op.translation_vector for op in position.ops]) * DENOMINATOR
    assert np.allclose(linear, np.rint(linear)) and np.allclose(offset, np.rint(offset), atol=1e-3)
    return np.rint(linear).astype(int), np.rint(offset).astype(int) % DENOMINATOR


def generators(rotations: np.ndarray, translations: np.ndarray) -> list[int]:
    """Indices of operations that generate the whole group (modulo lattice translations)."""

    def key(w: np.ndarray, t: np.ndarray) -> tuple[int, ...]:
        return (*w.ravel().tolist(), *(t % DENOMINATOR).tolist())

    chosen: list[int] = []
    reached = {key(rotations[0], translations[0]): (rotations[0], translations[0])}
    for i in range(len(rotations)):
        if key(rotations[i], translations[i]) in reached:
            continue
        chosen.append(i)
        frontier = list(reached.values())
        while frontier:
            new = []
            for w, t in frontier:
                for j in chosen:
                    w2, t2 = rotations[j] @ w, (rotations[j] @ t + translations[j]) % DENOMINATOR
                    if key(w2, t2) not in reached:
                        reached[key(w2, t2)] = (w2, t2)
                        new.append((w2, t2))
            frontier = new
    assert len(reached) == len(rotations)
    return chosen


def polar_axes(rotations: np.ndarray) -> np.ndarray:
    """(3,) bool: axes along which the origin is free. In standard settings these are coordinate axes."""
    mean = rotations.mean(axis=0)
    free = np.array([np.allclose(mean[:, i], np.eye(3)[i]) for i in range(3)])
    assert free.sum() == round(np.trace(mean))
    return free


def candidate_rotations(number: int) -> list[np.ndarray]:
    """Proper changes of basis that can map the setting to itself.

    Proper ones suffice: an improper image of a crystal is its mirror image, and where the group holds an improper
    operation every coset of the normaliser holds a proper element too.
    """
    if number <= 2:  # any unimodular matrix serves; cell reduction in crystallm.symmetry takes care of them
        return [np.eye(3, dtype=int)]
    if number <= 15:
        found = []
        for p, q, r, s in itertools.product(range(-2, 3), repeat=4):
            if abs(p * s - q * r) == 1:
                found.append(np.array([[p, 0, q], [0, p * s - q * r, 0], [r, 0, s]]))
        return found
    if 143 <= number <= 194:
        six = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]])
        two = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
        powers = [np.linalg.matrix_power(six, k) for k in range(6)]
        return powers + [p @ two for p in powers]
    signed = []
    for perm in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            m = np.zeros((3, 3), int)
            m[range(3), perm] = signs
            if round(np.linalg.det(m)) == 1 and (not 75 <= number <= 142 or perm[2] == 2):
                signed.append(m)
    return signed


def normaliser(
    number: int, rotations: np.ndarray, translations: np.ndarray, free: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Coset representatives (m, t): x' = m x + t maps the group to itself; modulo the group and polar shifts."""
    steps = [np.array([0]) if f else np.arange(DENOMINATOR) for f in free]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)  # (n_t, 3)
    shifts_of: dict[tuple, list[np.ndarray]] = {}
    for w, t in zip(rotations, translations, strict=True):
        shifts_of.setdefault(tuple(w.ravel().tolist()), []).append(t)
    gens = generators(rotations, translations)
    cosets, seen = [], set()
    for m in sorted(candidate_rotations(number), key=lambda m: not np.array_equal(m, np.eye(3))):
        inverse = np.rint(np.linalg.inv(m)).astype(int)
        ok = np.ones(len(grid), bool)
        for j in gens:
            w2 = m @ rotations[j] @ inverse
            allowed = shifts_of.get(tuple(w2.ravel().tolist()))
            if allowed is None:
                ok[:] = False
                break
            t2 = (m @ translations[j] + grid - grid @ w2.T) % DENOMINATOR  # (n_t, 3)
            ok &= (t2[:, None] == np.array(allowed)[None]).all(-1).any(-1)
        for t in grid[ok]:
            images = []
            for w, v in zip(rotations, translations, strict=True):
                if round(np.linalg.det(w)) == 1:
                    shifted = np.where(free, 0, (w @ t + v) % DENOMINATOR)
                    images.append((*(w @ m).ravel().tolist(), *shifted.tolist()))
            if min(images) not in seen:
                seen.add(min(images))
                cosets.append((m, t))
    return cosets


class Form:
    """The first representative of a Wyckoff position: x = linear @ p + offset, p in the slots of its own axes."""

    def __init__(self, linear: np.ndarray, offset: np.ndarray):
        self.linear, self.offset = linear, offset
        self.parameters = [j for j in range(3) if linear[:, j].any()]
        self.axes: list[int] = []  # coordinate that carries each parameter
        known: set[int] = set()
        for i in range(3):
            new = [j for j in range(3) if linear[i, j] and j not in known]
            if new:
                assert len(new) == 1 and abs(linear[i, new[0]]) == 1, (linear, offset)
                known.add(new[0])
                self.axes.append(i)
        assert len(self.axes) == len(self.parameters)

    def read(self, x: np.ndarray) -> np.ndarray:
        """(..., 3) points -> (..., 3) the points of the form with the same free coordinates."""
        p = np.zeros_like(x)
        known: set[int] = set()
        for i in self.axes:
            j = next(j for j in range(3) if self.linear[i, j] and j not in known)
            others = sum(self.linear[i, k] * p[..., k] for k in known)
            p[..., j] = self.linear[i, j] * (x[..., i] - self.offset[i] / DENOMINATOR - others)
            known.add(j)
        return p @ self.linear.T + self.offset / DENOMINATOR

    def holds(self, x: np.ndarray) -> np.ndarray:
        delta = x - self.read(x)
        return np.abs(delta - np.rint(delta)).max(-1) < 1e-7


def holohedry(system: str) -> np.ndarray:
    """(n, 3, 3) int64: the rotations that keep every conventional cell of a crystal system."""
    if system in ("trigonal", "hexagonal"):
        six, two = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
        powers = [np.linalg.matrix_power(six, k) for k in range(6)]
        proper = np.array(powers + [power @ two for power in powers])
        return np.concatenate([proper, -proper])
    found = []
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2) and system != "cubic" and (system, order) != ("tetragonal", (1, 0, 2)):
            continue
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3), dtype=np.int64)
            matrix[range(3), order] = signs
            found.append(matrix)
    if system == "triclinic":
        found = [m for m in found if abs(np.trace(m)) == 3]
    if system == "monoclinic":
        found = [m for m in found if m[0, 0] == m[2, 2]]
    return np.array(found)


def position_maps(number: int, rotations: np.ndarray, translations: np.ndarray, forms: list[Form]) -> np.ndarray:
    """(n_maps, n_positions): for operations outside the group, the index of the position each position is carried to.

    A position with free parameters is carried to itself or to -1, which stands as well for what the operation does not
    carry to a whole position. Translations in 24ths; the choice of parameters is random, so what holds, holds for all.
    """
    generic = np.random.default_rng(number).random(3)
    orbits = []
    for form in forms:
        images = rotations @ form.read(generic) + translations / DENOMINATOR
        kept: list[np.ndarray] = []
        for image in images:
            if not any(_equal(image[None], other[None]) for other in kept):
                kept.append(image)
        orbits.append(np.array(kept))
    own = {(*w.ravel().tolist(), *t.tolist()) for w, t in zip(rotations, translations, strict=True)}
    maps: set[tuple[int, ...]] = set()
    for rotation in holohedry(crystal_system(number)):
        shifts = np.concatenate([orbit - rotation @ orbit[0] for orbit in orbits]) * DENOMINATOR
        steps = np.rint(shifts)
        for step in np.unique(steps[np.abs(shifts - steps).max(axis=1) < 1e-5] % DENOMINATOR, axis=0).astype(int):
            if (*rotation.ravel().tolist(), *step.tolist()) not in own:
                maps.add(tuple(_carried(forms, orbits, rotation, step / DENOMINATOR)))
    useful = [image for image in maps if any(index >= 0 for index in image)]
    return np.array(sorted(useful), dtype=np.int8).reshape(-1, len(forms))


def _carried(forms: list[Form], orbits: list[np.ndarray], rotation: np.ndarray, shift: np.ndarray) -> Iterator[int]:
    for own, (form, orbit) in enumerate(zip(forms, orbits, strict=True)):
        image = orbit @ rotation.T + shift  # (multiplicity, 3)
        others = [own] if form.axes else [k for k, other in enumerate(forms) if not other.axes]
        yield next((k for k in others if len(orbits[k]) == len(image) and _equal(image, orbits[k])), -1)


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two (n, 3) sets of points are the same, modulo 1."""
    delta = first[:, None] - second
    return bool((np.abs(delta - np.rint(delta)).max(axis=2) < 1e-6).any(axis=1).all())


def spellings(symbols: Sequence[str]) -> dict[str, int]:
    """Symbols of all settings without blanks and underscores, lower case -> number of the group.

    spglib's of 530 settings, and what else gemmi knows: the letters of before 1992 ("Cmca" is Cmce) and larger cells.
    """
    known: dict[str, int] = {}

    def add(name: str, number: int) -> None:
        key = name.split(":")[0].replace(" ", "").replace("_", "").casefold()
        if known.setdefault(key, number) != number:
            print("ambiguous spelling", name, known[key], number)

    for hall in range(530, 0, -1):
        info = spglib.get_spacegroup_type(hall)
        names = {info.international, info.international_short, info.international_full, info.schoenflies}
        names |= {part.strip() for name in names for part in name.split("=")}
        if 3 <= info.number <= 15:  # "I 1 2/a 1" is written "I2/a" as well
            names |= {"".join(part for part in name.split() if part != "1") for name in names}
        if info.number >= 195:  # before 1992 the bar was left out: "Fm3m"
            names |= {name.replace("-3", "3") for name in names}
        for name in sorted(names):
            add(name, info.number)
    for setting in gemmi.spacegroup_table():
        add(setting.hm, setting.number)
        add(setting.short_name(), setting.number)
    for number, symbol in enumerate(symbols, 1):
        known[symbol.replace("_", "").casefold()] = number
    return known


def spelling_arrays(symbols: Sequence[str]) -> dict[str, np.ndarray]:
    known = spellings(symbols)
    return {"alias": np.array(list(known)), "alias_number": np.array(list(known.values()), np.int16)}


def write(output: Path, arrays: Mapping[str, Any]) -> None:
    np.savez_compressed(output, **arrays)
    print(output.name, output.stat().st_size, "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=project_root() / "resources/space_groups.npz")
    parser.add_argument("--only-spellings", action="store_true", help="of the table that is there; without pyxtal")
    given = parser.parse_args()
    output = given.out
    if given.only_spellings:
        with np.load(output) as table:
            write(output, dict(table) | spelling_arrays(table["symbol"].tolist()))
        return
    try:
        from pyxtal.symmetry import Group
    except ModuleNotFoundError:
        raise SystemExit("make_space_group_tables needs pyxtal: pip install 'crystallm[tables]'") from None
    rng = np.random.default_rng(0)
    default_hall = {t.number: h for h in range(530, 0, -1) for t in [spglib.get_spacegroup_type(h)]}
    out: dict[str, list] = {name: [] for name in (*OF_GROUP, *OF_POSITION, *OF_COSET)}
    for number in range(1, 231):
        positions = list(reversed(Group(number).Wyckoff_positions))  # a first, general last
        rotations, translations = operations_of(positions[-1])
        members = {(*w.ravel().tolist(), *t.tolist()) for w, t in zip(rotations, translations, strict=True)}
        free = polar_axes(rotations)

        # the Hall number of this setting, and the shift from the origin of spglib's default one
        for hall in range(1, 531):
            info = spglib.get_spacegroup_type(hall)
            if info.number == number:
                db = spglib.get_symmetry_from_database(hall)
                t24 = np.rint(db["translations"] * DENOMINATOR).astype(int) % DENOMINATOR
                if {(*w.ravel().tolist(), *t.tolist()) for w, t in zip(db["rotations"], t24, strict=True)} == members:
                    out["hall_number"].append(hall)
                    break
        else:
            raise RuntimeError(f"no Hall number for {number}")
        out["symbol"].append(spglib.get_spacegroup_type(default_hall[number]).international_short)
        db = spglib.get_symmetry_from_database(default_hall[number])
        t24 = np.rint(db["translations"] * DENOMINATOR).astype(int)
        for shift in sorted(itertools.product(range(0, DENOMINATOR, 3), repeat=3), key=lambda s: (sum(s), s)):
            s = np.array(shift)
            moved = (t24 + s - db["rotations"] @ s) % DENOMINATOR
            if {(*w.ravel().tolist(), *t.tolist()) for w, t in zip(db["rotations"], moved, strict=True)} == members:
                out["shift"].append(s)
                break
        else:
            raise RuntimeError(f"no origin shift for {number}")

        out["op_start"].append(sum(map(len, out["rotations"])))
        out["rotations"].append(rotations)
        out["translations"].append(translations)
        out["polar"].append(free)
        forms = []
        out["position_start"].append(len(out["letter"]))
        for position in positions:
            linear, offset = operations_of(position)
            form = Form(linear[0], offset[0])
            forms.append(form)
            point = form.read(rng.random(3))
            images = rotations @ point + translations / DENOMINATOR  # (n_ops, 3)
            stabiliser, orbit = [], []
            kept: list[np.ndarray] = []
            actions: set[tuple[int, ...]] = set()
            for k, image in enumerate(images):
                if form.holds(image):
                    key = tuple(np.rint((image % 1.0) * 1e8).astype(int) % 10**8)
                    if key not in actions:  # two operations with one action on the variety count once
                        actions.add(key)
                        stabiliser.append(k)
                if all(np.abs((image - o) - np.rint(image - o)).max() > 1e-7 for o in kept):
                    kept.append(image)
                    orbit.append(k)
            assert len(orbit) == position.multiplicity, (number, position.letter, len(orbit))
            out["letter"].append(position.letter)
            out["multiplicity"].append(position.multiplicity)
            out["linear"].append(linear[0])
            out["offset"].append(offset[0])
            out["stabiliser_start"].append(sum(map(len, out["stabiliser"])))
            out["stabiliser"].append(np.array(stabiliser))
            out["orbit_start"].append(sum(map(len, out["orbit"])))
            out["orbit"].append(np.array(orbit))

        maps = position_maps(number, rotations, translations, forms)
        out["map_start"].append(sum(map(len, out["maps"])))
        out["maps"].append(maps.ravel())
        cosets = normaliser(number, rotations, translations, free)
        out["coset_start"].append(len(out["coset_m"]))
        out["image_start"].append(sum(map(len, out["coset_letter"])))
        for m, t in cosets:
            out["coset_m"].append(m)
            out["coset_t"].append(t)
            letters, ops = [], []
            for form, position in zip(forms, positions, strict=True):
                image = m @ form.read(rng.random(3)) + t / DENOMINATOR
                points = rotations @ image + translations / DENOMINATOR
                found = [
                    (b, int(np.argmax(forms[b].holds(points))))
                    for b, other in enumerate(positions)
                    if other.multiplicity == position.multiplicity
                    and len(forms[b].axes) == len(form.axes)
                    and forms[b].holds(points).any()
                ]
                assert len(found) == 1, (number, position.letter, m, t, found)
                letters.append(found[0][0])
                ops.append(found[0][1])
            assert sorted(letters) == list(range(len(positions)))
            out["coset_letter"].append(np.array(letters))
            out["coset_op"].append(np.array(ops))
        print(
            number, out["symbol"][-1], len(rotations), "operations", len(positions), "positions", len(cosets), "cosets"
        )

    starts = [
        "op_start",
        "position_start",
        "stabiliser_start",
        "orbit_start",
        "coset_start",
        "image_start",
        "map_start",
    ]
    lengths = ["rotations", "letter", "stabiliser", "orbit", "coset_m", "coset_letter", "maps"]
    arrays: dict[str, Any] = {}
    for name, of in zip(starts, lengths, strict=True):
        joined = out[of]
        total = len(joined) if of in ("letter", "coset_m") else sum(map(len, joined))
        arrays[name] = np.array([*out[name], total], np.int32)
    for name in ("rotations", "translations"):
        arrays[name] = np.concatenate(out[name]).astype(np.int8)
    for name in ("stabiliser", "orbit", "coset_letter", "coset_op"):
        arrays[name] = np.concatenate(out[name]).astype(np.uint8)
    for name in ("linear", "offset", "coset_m", "coset_t", "shift"):
        arrays[name] = np.array(out[name], np.int8)
    arrays["maps"] = np.concatenate(out["maps"])
    arrays["multiplicity"] = np.array(out["multiplicity"], np.int16)
    arrays["hall_number"] = np.array(out["hall_number"], np.int16)
    arrays["polar"] = np.array(out["polar"], bool)
    arrays["letter"] = np.array(out["letter"])
    arrays["symbol"] = np.array(out["symbol"])
    write(output, arrays | spelling_arrays(out["symbol"]))


if __name__ == "__main__":
    main()
