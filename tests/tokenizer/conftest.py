"""Canonical texts written here lexeme by lexeme, so that the tokens expected are known without the tokenizer."""

import random
from pathlib import Path

import pytest

from tokenizer import CIFTokenizer, Grammar
from tokenizer.elements import SYMBOLS
from tokenizer.space_group_symbols import SPACE_GROUP_SYMBOLS

PROPERTIES = ("band_gap_ev", "formation_energy_ev_per_atom", "e_above_hull_ev_per_atom")
PROPERTIES += ("density_g_per_cm3", "volume_per_atom_ang3")
SITE_HEADER = "\nloop_" + "".join(
    f"\n_atom_site_{name}" for name in ("type_symbol", "Wyckoff_symbol", "fract_x", "fract_y", "fract_z")
)


def random_lexemes(rng: random.Random) -> list[str]:
    """The lexemes of a text that is canonical in syntax; its chemistry is nonsense."""
    lexemes = []
    for name in PROPERTIES:
        if rng.random() < 0.3:
            lexemes += [f"# {name} ", f"{rng.randint(-1000, 9999) / 100:+.2f}\n"]
    lexemes.append("data_")
    elements = rng.sample(SYMBOLS, rng.randint(1, 7))
    for element in elements:
        lexemes.append(element)
        if rng.random() < 0.6:
            lexemes.append(str(rng.choice([2, 3, 9, 10, 24, 100, 999])))
    lexemes += ["\n_crystallm_primitive_formula_units ", str(rng.choice([1, 2, 7, 12, 64, 999]))]
    lexemes += ["\n_symmetry_space_group_name_H-M", f" {rng.choice(SPACE_GROUP_SYMBOLS)}"]
    for axis in "abc":
        lexemes += [f"\n_cell_length_{axis} ", f"{rng.randint(100, 9999) / 100:.2f}"]
    for angle in ("alpha", "beta", "gamma"):
        lexemes += [f"\n_cell_angle_{angle} ", f"{rng.randint(100, 1700) / 10:.1f}"]
    lexemes.append(SITE_HEADER)
    for _ in range(rng.randint(1, 20)):
        lexemes += [f"\n{rng.choice(elements)}", f" {rng.choice('abcdefghijklmnopqrstuvwxyzA')}"]
        lexemes += [f" {rng.randint(0, 999) / 1000:.3f}" for _ in range(3)]
    return [*lexemes, "\n"]


@pytest.fixture(scope="session")
def canonical_lexemes() -> list[list[str]]:
    rng = random.Random(0)
    return [random_lexemes(rng) for _ in range(300)]


@pytest.fixture(scope="session")
def catio3() -> str:
    return Path(__file__).with_name("catio3.cif").read_text()


@pytest.fixture(scope="session")
def tok() -> CIFTokenizer:
    return CIFTokenizer()


@pytest.fixture(scope="session")
def grammar(tok: CIFTokenizer) -> Grammar:
    return Grammar(tok)
