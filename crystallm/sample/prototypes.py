"""Common prototypes as space group and Wyckoff letters: what `--prototype` asks for.

    find_prototype("perovskite").arrangements  # (Arrangement((1, 1, 3), (0, 1, 2)), ...)

Which element takes which site follows from the counts of the formula: in CaF2 as in Li2O the one that stands once takes
the site of Ca. Where counts are equal, as of Ca and Ti in CaTiO3, every distribution is allowed and the model chooses.
Free coordinates, and what the cell leaves free, are the model's too.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from dataclasses import dataclass

from crystallm.sample.composition import Arrangement
from crystallm.sample.formulas import PromptError
from crystallm.space_groups import space_group


@dataclass(frozen=True)
class Prototype:
    """`sites`: the letters of each kind of site, in any setting of the origin; the kinds as in `formula`."""

    name: str
    formula: str  # "AB", "ABX3"
    example: str
    space_group: int
    sites: tuple[str, ...]

    @functools.cached_property
    def _atoms(self) -> tuple[int, ...]:
        """In the conventional cell, by kind of site."""
        group = space_group(self.space_group)
        return tuple(sum(group.position(letter).multiplicity for letter in letters) for letters in self.sites)

    @property
    def counts(self) -> tuple[int, ...]:
        """Of the reduced formula, by kind of site."""
        return tuple(n // math.gcd(*self._atoms) for n in self._atoms)

    @property
    def formula_units(self) -> int:
        """In the primitive cell."""
        return math.gcd(*self._atoms) // space_group(self.space_group).n_centring

    @functools.cached_property
    def arrangements(self) -> tuple[Arrangement, ...]:
        """Each way to give its sites to the elements of a formula, in the letters of the canonical description."""
        found = dict[Arrangement, None]()
        for order in itertools.permutations(range(len(self.sites))):
            letters = [self.sites[kind] for kind in order]
            found[Arrangement(tuple(self.counts[kind] for kind in order), self._canonical(letters))] = None
        return tuple(found)

    def _canonical(self, letters: list[str]) -> tuple[int, ...]:
        """Letters by element -> indices site by site: the smallest among the images under the group's normaliser."""
        group = space_group(self.space_group)
        sites = [[group.position(letter).index for letter in of_element] for of_element in letters]
        images = group.normaliser.letters.tolist()  # (n_cosets, n_positions)
        return min(
            tuple(index for of_element in sites for index in sorted(image[site] for site in of_element))
            for image in images
        )

    def describe(self) -> str:
        group = space_group(self.space_group)
        sites = ", ".join(
            f"{kind} on {' and '.join(letters)}" for kind, letters in zip(self._kinds(), self.sites, strict=True)
        )
        return f"{self.name} ({self.formula}, as {self.example}): {group.symbol} (no. {group.number}), {sites}"

    def _kinds(self) -> list[str]:
        return [letter for letter in self.formula if letter.isalpha()]


PROTOTYPES = (
    Prototype("fcc", "A", "Cu", 225, ("a",)),
    Prototype("bcc", "A", "W", 229, ("a",)),
    Prototype("hcp", "A", "Mg", 194, ("c",)),
    Prototype("dhcp", "A", "La", 194, ("ac",)),
    Prototype("simple_cubic", "A", "Po", 221, ("a",)),
    Prototype("diamond", "A", "C", 227, ("a",)),
    Prototype("graphite", "A", "C", 194, ("bc",)),
    Prototype("beta_tin", "A", "Sn", 141, ("a",)),
    Prototype("rock_salt", "AB", "NaCl", 225, ("a", "b")),
    Prototype("cscl", "AB", "CsCl", 221, ("a", "b")),
    Prototype("zinc_blende", "AB", "ZnS", 216, ("a", "c")),
    Prototype("wurtzite", "AB", "ZnO", 186, ("b", "b")),
    Prototype("nickeline", "AB", "NiAs", 194, ("a", "c")),
    Prototype("cuau", "AB", "CuAu", 123, ("a", "d")),
    Prototype("fluorite", "AX2", "CaF2", 225, ("a", "c")),
    Prototype("rutile", "AX2", "TiO2", 136, ("a", "f")),
    Prototype("pyrite", "AX2", "FeS2", 205, ("a", "c")),
    Prototype("cadmium_iodide", "AX2", "CdI2", 164, ("a", "d")),
    Prototype("molybdenite", "AX2", "MoS2", 194, ("c", "f")),
    Prototype("aluminium_diboride", "AX2", "AlB2", 191, ("a", "d")),
    Prototype("laves_c15", "AX2", "MgCu2", 227, ("a", "d")),
    Prototype("laves_c14", "AX2", "MgZn2", 194, ("f", "ah")),
    Prototype("cu3au", "AX3", "AuCu3", 221, ("a", "c")),
    Prototype("a15", "AX3", "SiCr3", 223, ("a", "c")),
    Prototype("bismuth_trifluoride", "AX3", "BiF3", 225, ("a", "bc")),
    Prototype("corundum", "A2X3", "Al2O3", 167, ("c", "e")),
    Prototype("perovskite", "ABX3", "SrTiO3", 221, ("a", "b", "c")),
    Prototype("ilmenite", "ABX3", "FeTiO3", 148, ("c", "c", "f")),
    Prototype("half_heusler", "ABC", "MgAgAs", 216, ("a", "b", "c")),
    Prototype("delafossite", "ABX2", "CuAlO2", 166, ("a", "b", "c")),
    Prototype("chalcopyrite", "ABX2", "CuFeS2", 122, ("a", "b", "d")),
    Prototype("heusler", "ABX2", "MnAlCu2", 225, ("a", "b", "c")),
    Prototype("thorium_chromium_silicide", "AB2X2", "ThCr2Si2", 139, ("a", "d", "e")),
    Prototype("spinel", "AB2X4", "MgAl2O4", 227, ("a", "d", "e")),
    Prototype("k2nif4", "AB2X4", "NiK2F4", 139, ("a", "e", "ce")),
    Prototype("pyrochlore", "A2B2X7", "Ca2Nb2O7", 227, ("d", "c", "bf")),
    Prototype("double_perovskite", "ABC2X6", "NaAlK2F6", 225, ("a", "b", "c", "e")),
)


def find_prototype(name: str) -> Prototype:
    """By name in any spelling. Raises PromptError with the names there are."""
    wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = [prototype.name for prototype in PROTOTYPES]
    if wanted in names:
        return PROTOTYPES[names.index(wanted)]
    closest = difflib.get_close_matches(wanted, names, n=1, cutoff=0.0)[0]
    raise PromptError(f"no prototype {name!r}; the closest is {closest!r}; there are {', '.join(names)}")


def prototypes_for(counts: tuple[int, ...]) -> list[str]:
    """Names of those that a formula with these counts, in any order, can have."""
    return [prototype.name for prototype in PROTOTYPES if sorted(prototype.counts) == sorted(counts)]
