"""The symmetry that a CIF states, by operators, Hall or Hermann-Mauguin symbol or number; and the atoms it stands for.

These are the settings that people use. The one setting of the canonical text is in space_groups.py.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystallm.cif_text import CIFError, Table, string_value, unquote
from crystallm.crystal import same_proportions
from tokenizer.elements import SYMBOLS

Floats = NDArray[np.float64]

# Images of a site closer than this are one site on a special position: the symprec of all symmetry searches here.
SITE_TOLERANCE_ANG = 0.1
# Operators may distort the cell they act on by this, relative to its lengths squared; rounded cells stay below 0.005.
METRIC_TOLERANCE = 0.05
_MAX_OPERATORS = 1_000  # 192 in a face-centred cubic cell, more in a magnetic or a larger one

_OPERATOR_TAGS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_magn_operation_xyz",
)
_MODULATED = re.compile(r"_space_group_(?:symop_)?(?:magn_)?ssg_")
_CENTRING_TAG = "_space_group_symop_magn_centering_xyz"
HALL_TAGS = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
SYMBOL_TAGS = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
    "_space_group_name_h-m",
)
NUMBER_TAGS = ("_space_group_it_number", "_symmetry_int_tables_number")


@dataclass(frozen=True, eq=False)
class Operations:
    """x' = rotations[k] @ x + translations[k]"""

    name: str
    rotations: Floats  # (n, 3, 3)
    translations: Floats  # (n, 3)

    @property
    def n(self) -> int:
        return len(self.rotations)

    def distortion(self, lattice: Floats) -> float:
        """How far the operations are from isometries of this lattice: 0 where they fit."""
        metric = lattice @ lattice.T
        lengths = np.sqrt(np.diag(metric))
        turned = np.swapaxes(self.rotations, 1, 2) @ metric @ self.rotations
        return float(np.abs((turned - metric) / np.outer(lengths, lengths)).max())


@dataclass(frozen=True)
class Expected:
    """Counts that the CIF states, by which the right one of several settings is known."""

    multiplicities: list[int] | None
    compositions: list[dict[str, float]]  # of the cell; any of these
    formula: dict[str, float] | None = None  # whose proportions count where the cell's composition is not stated

    def mismatches(self, atomic_numbers: NDArray[np.int64], site_index: NDArray[np.int64]) -> int:
        wrong = 0
        if self.multiplicities:
            found = np.bincount(site_index, minlength=len(atomic_numbers))
            wrong += int((found != np.array(self.multiplicities)).sum())
        counts = Counter(SYMBOLS[z - 1] for z in atomic_numbers[site_index].tolist())
        if self.compositions:
            wrong += min(
                sum(abs(counts[s] - composition.get(s, 0)) > 0.1 for s in {*counts, *composition})
                for composition in self.compositions
            )
        elif self.formula:
            wrong += not same_proportions(self.formula, counts)
        return wrong


def expand_as_expected(
    settings: Sequence[Operations],
    expected: Expected,
    lattice: Floats,
    labels: Sequence[str],
    atomic_numbers: NDArray[np.int64],
    frac_coords: Floats,
    tolerance_ang: float,
) -> tuple[Operations, Floats, NDArray[np.int64]]:
    """The setting that fits cell and stated counts best, all atoms of the cell, and the site each comes from."""
    fitting = [s for s in settings if s.distortion(lattice) <= METRIC_TOLERANCE]
    if not fitting:
        raise CIFError(
            "bad_symmetry",
            f"{settings[0].name} does not fit the cell, which its operators would distort; wanted lengths and angles "
            "equal where the group makes them so",
        )
    best = None
    for setting in fitting:
        coords, site_index = expand(
            lattice, setting.rotations, setting.translations, frac_coords, tolerance_ang, labels
        )
        wrong = expected.mismatches(atomic_numbers, site_index) if len(fitting) > 1 else 0
        if best is None or wrong < best[0]:
            best = wrong, setting, coords, site_index
        if not wrong:
            break
    assert best is not None
    return best[1:]


def expand(
    lattice: Floats,
    rotations: Floats,
    translations: Floats,
    frac_coords: Floats,
    tolerance_ang: float = SITE_TOLERANCE_ANG,
    labels: Sequence[str] = (),
) -> tuple[Floats, NDArray[np.int64]]:
    """All images of the sites (n, 3), once each: (n_atoms, 3) in [0, 1), and the site each comes from.

    A site within the tolerance of its own images is first moved onto their mean, the special position it stands for.
    """
    n_sites, n_ops = len(frac_coords), len(rotations)
    sites = frac_coords
    for _ in range(3):  # once is enough, unless images lie just about at the tolerance
        images = np.einsum("kij,nj->nki", rotations, sites) + translations  # (n_sites, n_ops, 3)
        delta = images - sites[:, None]
        delta -= np.rint(delta)
        distance = np.linalg.norm(delta @ lattice, axis=-1)  # (n_sites, n_ops), Å
        stabiliser = distance < tolerance_ang
        if (distance[stabiliser] < 1e-6).all():
            break
        sites = sites + (delta * stabiliser[..., None]).sum(axis=1) / stabiliser.sum(axis=1)[:, None]
    else:
        site = int(np.argmax((distance * stabiliser).max(axis=1)))
        label = labels[site] if labels else str(site)
        gap = distance[site][stabiliser[site]].max()
        raise CIFError(
            "overlap", f"site {label!r} lies {gap:.3f} Å from its own image; wanted 0, or an atom's distance"
        )
    images %= 1.0
    images[images > 1 - 1e-9] = 0.0
    order = stabiliser.sum(axis=1)
    coords, site_index = [], []
    for i in range(n_sites):
        orbit = images[i] if order[i] == 1 else images[i][_first_of_each(images[i])]
        if len(orbit) * order[i] != n_ops:
            raise CIFError(
                "bad_symmetry",
                f"site {labels[i] if labels else i!r} has {len(orbit)} images under {n_ops} operators, {order[i]} of "
                "which keep it: they form no group",
            )
        coords.append(orbit)
        site_index.append(np.full(len(orbit), i))
    return np.concatenate(coords), np.concatenate(site_index)


def _first_of_each(points: Floats) -> NDArray[np.int64]:
    """Indices of the distinct points (n, 3) in [0, 1), in order of appearance; equal ones agree to 1e-7."""
    # The irrational shift keeps decimal and rational coordinates off the edges between two keys.
    keys = np.floor(points * 1e6 + np.pi / 7).astype(np.int64) % 1_000_000 @ np.array([10**12, 10**6, 1])
    return np.sort(np.unique(keys, return_index=True)[1])


def site_distance(operations: Operations, lattice: Floats, first: Floats, second: Floats) -> float:
    """Å, from the first site to the closest image of the second, neither moved onto a special position."""
    delta = operations.rotations @ second + operations.translations - first  # (n, 3)
    return float(np.linalg.norm((delta - np.rint(delta)) @ lattice, axis=1).min())


IDENTITY = Operations("P 1", np.eye(3)[None], np.zeros((1, 3)))


def stated_settings(table: Table) -> list[Operations]:
    """The operations that the CIF names: one list, or several where a symbol has several settings, likeliest first."""
    hall, symbol = string_value(table, *HALL_TAGS), string_value(table, *SYMBOL_TAGS)
    number = string_value(table, *NUMBER_TAGS)
    for tag in _OPERATOR_TAGS:
        triplets = table.get(tag)
        if triplets and triplets[0] not in ("?", "."):
            listed = _operations_of_triplets(tuple(triplets), tuple(table.get(_CENTRING_TAG, ())))
            if listed.n == 1 and symbol not in (None, "P 1", "P1"):
                # CrystaLLM's texts list x, y, z for any group: multiplicities or formula tell what is meant.
                return [listed, *settings_of_symbol(symbol)]
            return [listed]
    if modulated := next((tag for tag in table if _MODULATED.match(tag)), None):
        raise CIFError("bad_symmetry", f"{modulated}: a modulated structure; wanted operators in three dimensions")
    if hall is not None and (found := _settings_of_hall(hall)):
        return list(found)
    if symbol is not None and (found := settings_of_symbol(symbol)):
        return list(found)
    if number is not None and (found := _settings_of_number(number)):
        return list(found)
    stated = [repr(text) for text in (hall, symbol, number) if text is not None]
    if stated:
        raise CIFError("bad_symmetry", f"{', '.join(stated)} names no space group; wanted operators, symbol or number")
    return [IDENTITY]  # no word about symmetry: every atom is listed, as pymatgen, ASE and gemmi read it


@functools.lru_cache(1024)
def _operations_of_triplets(triplets: tuple[str, ...], centrings: tuple[str, ...] = ()) -> Operations:
    if triplets[0].count(",") == 1 and len(triplets) % 3 == 0:  # x, y, z without quotes: three values to a reader
        triplets = tuple("".join(triplets[i : i + 3]) for i in range(0, len(triplets), 3))
    parsed = [_triplet(unquote(text)) for text in triplets]
    if centrings:
        shifts = [_triplet(unquote(text))[1] for text in centrings]
        parsed = [(rotation, (translation + shift) % 1) for shift in shifts for rotation, translation in parsed]
    if len(parsed) > _MAX_OPERATORS:
        raise CIFError("bad_symmetry", f"{len(parsed)} operators, at most {_MAX_OPERATORS} are read")
    rotations = np.array([rotation for rotation, _ in parsed])
    translations = np.array([translation for _, translation in parsed])
    distinct = np.sort(np.unique(_operation_keys(rotations, translations), return_index=True)[1])
    rotations, translations = rotations[distinct], translations[distinct]
    identity = (rotations == np.eye(3)).all(axis=(1, 2)) & (np.abs(translations) < 1e-6).all(axis=1)
    if not identity.any():
        raise CIFError("bad_symmetry", f"the identity x, y, z is not among the {len(triplets)} operators")
    operations = Operations(f"the list of {len(rotations)} operators", rotations, translations)
    _check_group(operations)
    first = int(np.argmax(identity))
    if first:  # the identity first, so that a site as listed comes first in its orbit
        order = np.r_[first, np.delete(np.arange(len(rotations)), first)]
        operations = Operations(operations.name, rotations[order], translations[order])
    return operations


def _check_group(operations: Operations) -> None:
    """The product of two operations is one of them."""
    r, t = operations.rotations, operations.translations
    products = np.einsum("aij,bjk->abik", r, r).reshape(-1, 3, 3)
    shifts = (np.einsum("aij,bj->abi", r, t) + t[:, None]).reshape(-1, 3)
    if not np.isin(_operation_keys(products, shifts), _operation_keys(r, t)).all():
        raise CIFError("bad_symmetry", f"the {len(r)} operators form no group: a product of two is missing")


def _operation_keys(rotations: Floats, translations: Floats) -> NDArray[np.int64]:
    """(n,): one number for each operation. Translations count in 720ths: 24ths, and supercells' fifths, sixteenths."""
    entries = np.rint(rotations.reshape(-1, 9)).astype(np.int64) % 11
    grid = np.rint(translations * 720).astype(np.int64) % 720
    return entries @ 11 ** np.arange(9) * 720**3 + grid @ 720 ** np.arange(3)


_TERM = re.compile(r"([+-]?)\s*(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?)?\s*\*?\s*([xyz]?)")


@functools.lru_cache(8192)
def _triplet(text: str) -> tuple[Floats, Floats]:
    """'-x+1/2, y, z-x' -> rotation (3, 3) and translation (3,) in [0, 1)."""
    parts = text.lower().replace(" ", "").split(",")
    if len(parts) == 4 and parts[3] in ("+1", "-1", "1"):  # time reversal, of a magnetic CIF
        parts = parts[:3]
    rotation, translation = np.zeros((3, 3)), np.zeros(3)
    for row, part in enumerate(parts if len(parts) == 3 else ("",)):
        position = 0
        while position < len(part) or not part:
            term = _TERM.match(part, position)
            empty = term is None or not (term[2] or term[4]) or (position and not term[1])
            if term is None or empty or (term[3] and not int(term[3])):
                raise CIFError("bad_symmetry", f"operator {text!r} is not of the form 'x, y+1/2, -z'")
            position = term.end()
            value = (-1.0 if term[1] == "-" else 1.0) * float(term[2] or 1) / float(term[3] or 1)
            if term[4]:
                rotation[row, "xyz".index(term[4])] += value
            else:
                translation[row] += value
    if abs(abs(np.linalg.det(rotation)) - 1) > 1e-6 or (rotation != np.rint(rotation)).any():
        raise CIFError("bad_symmetry", f"operator {text!r} turns no lattice into itself")
    # 0.333 and 0.67 stand for thirds; fifths and sixteenths, of supercells, are farther from a 24th than this.
    exact = np.rint(translation * 24) / 24
    translation = np.where(np.abs(translation - exact) < 4e-3, exact, translation)
    return rotation, translation % 1.0


def _from_gemmi(group_ops: Any, name: str) -> Operations:
    operations = list(group_ops)
    denominator = operations[0].DEN
    return Operations(
        name,
        np.array([op.rot for op in operations]) / denominator,
        np.array([op.tran for op in operations]) / denominator % 1.0,
    )


@functools.lru_cache(1024)
def _settings_of_hall(text: str) -> tuple[Operations, ...]:
    import gemmi

    try:
        return (_from_gemmi(gemmi.symops_from_hall(text.replace("_", " ")), f"Hall symbol {text!r}"),)
    except (ValueError, RuntimeError):
        return ()


@functools.lru_cache(1024)
def settings_of_symbol(text: str) -> tuple[Operations, ...]:
    """Of a Hermann-Mauguin symbol in any spelling and setting; () where it names no group."""
    import gemmi

    name = re.sub(r"(?<=[2346])\((\d)\)", r"\1", text.replace("_", "").strip())  # P2(1)/c
    name = re.sub(r"\(.*?\)", "", name).strip()  # (No. 14)
    # ICSD's Z and S: origin at the centre (choice 2) or not (choice 1)
    name = re.sub(r"\s*(?::|(?<=[\s\d])[oO]|(?<=\s)[oO]rigin)\s*([12])$|(?<=[a-z\d])\s*:?\s*([SZ])$", _origin, name)
    found = gemmi.find_spacegroup_by_name(name) or gemmi.find_spacegroup_by_name(_short_symbol(name))
    if found is None:
        return _recentred(name, text)
    explicit = ":" in name or name[-1] in "HR"
    settings = [found]
    if not explicit:
        settings = [g for g in gemmi.spacegroup_table() if g.number == found.number and g.hm == found.hm]
        settings.sort(key=lambda g: "2H1R".find(g.ext) if g.ext in "2H1R" else 0)
        if 3 <= found.number <= 15:  # "P 21" may mean the axis c, as its cell will tell
            letters = [part for part in found.hm.split() if part != "1"]
            settings += [
                g
                for g in gemmi.spacegroup_table()
                if g.number == found.number and g.hm != found.hm and [p for p in g.hm.split() if p != "1"] == letters
            ]
            if name.split().count("1") >= 2:  # "P 1 21 1" says which axis it means
                settings = [found]
    return tuple(_from_gemmi(g.operations(), f"space group {text!r}") for g in settings)


def _origin(match: re.Match[str]) -> str:
    return ":" + (match[1] or ("1" if match[2] == "S" else "2"))


def _short_symbol(name: str) -> str:
    """F 4/m -3 2/m -> F m -3 m, P 63/m 2/m 2/c -> P 63/m m c"""
    centring, rest = name[:1], name[1:]
    if re.search(r"/[a-z]\s*-?3", rest):
        return centring + re.sub(r"[24][1-3]?/", " ", rest)
    if rest.count("/") >= 2 or "-3" in rest:
        return centring + re.sub(r"(?<!\d)21?/", " ", rest)
    return name


_CENTRING = {"A": (0, 0.5, 0.5), "B": (0.5, 0, 0.5), "C": (0.5, 0.5, 0), "I": (0.5, 0.5, 0.5)}


def _recentred(name: str, text: str) -> tuple[Operations, ...]:
    """B 21/c, C 4/m m m: a group that the tables list with a primitive cell, described in a larger one."""
    import gemmi

    letters = "ABC" if name[:1].upper() == "F" else name[:1].upper()
    primitive = gemmi.find_spacegroup_by_name("P" + name[1:])
    if primitive is None or not letters or any(letter not in _CENTRING for letter in letters):
        return ()
    base = _from_gemmi(primitive.operations(), f"space group {text!r}")
    shifts = np.array([(0, 0, 0), *(_CENTRING[letter] for letter in letters)])
    translations = np.concatenate([base.translations + shift for shift in shifts]) % 1
    return (Operations(base.name, np.tile(base.rotations, (len(shifts), 1, 1)), translations),)


@functools.lru_cache(1024)
def _settings_of_number(text: str) -> tuple[Operations, ...]:
    import gemmi

    if not text.isdigit() or not 1 <= int(text) <= 230:
        return ()
    standard = gemmi.find_spacegroup_by_number(int(text))
    settings = [g for g in gemmi.spacegroup_table() if g.number == int(text)]
    settings.sort(key=lambda g: (g.hm != standard.hm, g.ext not in "2H\0"))
    return tuple(_from_gemmi(g.operations(), f"space group no. {text}") for g in settings)
