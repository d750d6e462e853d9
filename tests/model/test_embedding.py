"""Numbers know their value from the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crystallm.model.embedding import TokenEmbedding, element_features, number_features
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import NUMBER_CLASSES, TokenSpec, token_spec
from crystallm.resources import resource_path
from tokenizer import CIFTokenizer
from tokenizer.elements import ATOMIC_NUMBERS


@pytest.fixture(scope="module")
def fresh(tokenizer: CIFTokenizer) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=64), token_spec(tokenizer)).eval()


def likeness(model: GPT, tokenizer: CIFTokenizer, first: str, second: str) -> float:
    with torch.no_grad():
        a, b = model.table()[[tokenizer.id(first), tokenizer.id(second)]]
    return float(F.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize(
    "number, near, far",
    [
        (" 0.249", " 0.250", " 0.600"),
        (" 0.000", " 0.999", " 0.500"),  # coordinates close the circle
        ("3.89", "3.90", "9.00"),
        ("90.0", "90.1", "35.0"),
        ("+1.10\n", "+1.11\n", "+7.00\n"),
    ],
)
def test_near_values_are_near_before_training(fresh: GPT, tokenizer: CIFTokenizer, number: str, near: str, far: str):
    assert likeness(fresh, tokenizer, number, near) > likeness(fresh, tokenizer, number, far) + 0.02


@pytest.mark.parametrize("name", NUMBER_CLASSES)
def test_features_tell_all_values_apart(tokenizer: CIFTokenizer, name: str):
    values = tokenizer.vocabulary.values[tokenizer.vocabulary.classes[name]].astype(np.float64)
    features = number_features(name, values)
    assert features.shape == (len(values), 64)
    assert np.abs(features).max() < 3
    gaps = np.abs(features[:, None] - features[None, ::97]).max(axis=-1)  # (n, some)
    gaps[::97][np.diag_indices(gaps.shape[1])] = 1  # each from itself
    assert gaps.min() > 0.01


def test_elements_start_from_their_chemistry(tokenizer: CIFTokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=64, element_features=True), token_spec(tokenizer)).eval()
    for kind in ("", "\n"):  # in the formula and at a site
        for one, near, far in (("Na", "K", "Cl"), ("Cl", "Br", "Na"), ("La", "Nd", "O")):
            assert likeness(model, tokenizer, kind + one, kind + near) > likeness(
                model, tokenizer, kind + one, kind + far
            )


def test_element_table_against_pymatgen():
    from pymatgen.core import Element

    with np.load(resource_path("resources/elements.npz")) as table:
        for symbol, group, period in (("Na", 1, 3), ("Fe", 8, 4), ("I", 17, 5)):
            row = ATOMIC_NUMBERS[symbol] - 1
            assert (table["group"][row], table["period"][row]) == (group, period)
            assert table["electronegativity"][row] == pytest.approx(Element(symbol).X)
    assert np.isfinite(element_features()).all() and element_features().shape[0] == 118


def test_coordinate_features_are_periodic():
    values = np.array([0.1, 0.25, 0.9])
    np.testing.assert_allclose(
        number_features("coordinate", values), number_features("coordinate", values + 1), atol=1e-4
    )


@torch.no_grad()
def test_the_table_of_some_classes_holds_the_same_vectors(fresh: GPT, tokenizer: CIFTokenizer):
    whole = fresh.embedding()
    part = fresh.embedding.table({"coordinate", "length"})
    for lexeme in (" 0.250", "3.89", "data_", " Pm-3m", "\nCa"):
        id_ = torch.tensor([tokenizer.id(lexeme)])
        torch.testing.assert_close(part(id_), whole[id_])
    assert len(part.matrix) < len(whole)


def test_without_values_each_token_has_its_own_vector(tokenizer: CIFTokenizer):
    spec = token_spec(tokenizer)
    plain = TokenEmbedding(spec, 8, 8, by_value=False)
    assert plain.plain.shape == (spec.vocab_size, 8) and not len(plain.numbers)


def test_a_token_in_two_classes_is_refused():
    both = (np.array([1, 2]), np.array([1.0, 2.0]))
    spec = TokenSpec(4, 0, {"integer": both, "length": both}, both, (), np.zeros(0), (), lambda ids: ids, -1, -1)
    with pytest.raises(ValueError, match="two of the number classes"):
        TokenEmbedding(spec, 8, 8, by_value=True)
