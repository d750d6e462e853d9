"""How each kind of sentence of a description is worded: the built-in describer takes the first, augmentation any.

The words in braces are a sentence's facts, by which every wording of a kind says the same.
"""

from __future__ import annotations

from collections.abc import Mapping

WORDINGS: dict[str, tuple[str, ...]] = {
    "formula": (
        "{formula} is a compound of {n_elements} elements.",
        "The reduced formula is {formula}, of {n_elements} elements.",
        "A crystal of {formula} ({n_elements} elements).",
        "{formula} consists of {n_elements} elements.",
    ),
    "element": (
        "{formula} is a pure element.",
        "The reduced formula is {formula}, a pure element.",
        "A crystal of the element {formula}.",
        "{formula} consists of a single element.",
    ),
    "symmetry": (
        "The space group is {symbol} (number {number}), {system}.",
        "It crystallises in the {system} space group {symbol} (number {number}).",
        "Crystal system {system}, space group {symbol}, number {number}.",
        "It has the symmetry of the {system} space group number {number}, {symbol}.",
    ),
    "prototype": (
        "It has the {prototype} structure.",
        "The structure is of the {prototype} type.",
        "The prototype is {prototype}.",
        "It is isostructural with {prototype}.",
    ),
    "density": (
        "The density is {density} g/cm3, with {volume} Å3 per atom.",
        "Each atom takes {volume} Å3, and the density is {density} g/cm3.",
        "It has a density of {density} g/cm3 and a volume per atom of {volume} Å3.",
        "Density {density} g/cm3, volume {volume} Å3 per atom.",
    ),
    "cell": (
        "The {setting} cell has {lengths}.",
        "For the {setting} cell, {lengths}.",
        "Cell ({setting}): {lengths}.",
        "Its {setting} cell measures {lengths}.",
    ),
    "size": (
        "The primitive cell holds {atoms} on {sites}.",
        "There are {atoms} in the primitive cell, on {sites}.",
        "Primitive cell of {atoms} on {sites}.",
        "With {sites}, the primitive cell holds {atoms}.",
    ),
    "families": (
        "It contains {families}.",
        "Among its elements are {families}.",
        "The elements are {families}.",
        "It is built from {families}.",
    ),
    "electronegativity": (
        "The electronegativities differ by {difference}.",
        "Its elements differ by {difference} in electronegativity.",
        "The largest difference in electronegativity is {difference}.",
        "Electronegativity difference {difference}.",
    ),
    "site": (
        "{who} has {neighbours}: {bonds}.",
        "{who} is bonded to {bonds}, {neighbours}.",
        "{who}, with {neighbours}, is bonded to {bonds}.",
        "There are {neighbours} around {who}: {bonds}.",
    ),
}


def word(kind: str, facts: Mapping[str, str], choice: int = 0) -> str:
    """One sentence; `choice` is the number of the wording."""
    return WORDINGS[kind][choice].format_map(facts)
