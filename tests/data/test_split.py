import pytest

from crystallm.data.split import split_of

FORMULAS = [f"A{i}B{j}" for i in range(100) for j in range(100)]


def test_shares_are_as_asked():
    sides = [split_of(formula, 0, 0.1, 0.05) for formula in FORMULAS]
    # three standard deviations of a binomial of 10,000
    assert sides.count("val") == pytest.approx(1000, abs=90)
    assert sides.count("test") == pytest.approx(500, abs=66)


def test_a_formula_has_one_side_whatever_else_there_is():
    assert [split_of(f) for f in FORMULAS[:50]] == [split_of(f) for f in reversed(FORMULAS[:50])][::-1]


def test_known_places():
    # blake2b of "0:NaCl", worked out with b2sum: the rule must not change, or every val set would
    import hashlib

    place = int(hashlib.blake2b(b"0:NaCl", digest_size=8).hexdigest(), 16) / 16**16
    assert split_of("NaCl", 0, val_share=place + 1e-9) == "val"
    assert split_of("NaCl", 0, val_share=place - 1e-9) == "train"


def test_another_seed_is_another_split():
    a = [split_of(f, 0, 0.5) for f in FORMULAS]
    b = [split_of(f, 1, 0.5) for f in FORMULAS]
    assert sum(x == y for x, y in zip(a, b, strict=True)) == pytest.approx(5000, abs=150)


def test_growing_the_val_share_moves_formulas_one_way():
    small = {f for f in FORMULAS if split_of(f, 0, 0.05) == "val"}
    large = {f for f in FORMULAS if split_of(f, 0, 0.10) == "val"}
    assert small < large
