"""Vocabularies without a grammar: lossless, one end token, and pieces that can be told beforehand."""

from __future__ import annotations

import functools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import CIFTokenizer, Grammar, VocabularyError
from tokenizer.pieces import (
    WORDS,
    bin_offset_spec,
    cell_last_spec,
    characters_spec,
    digits_spec,
    fine_grid_spec,
    pieces_spec,
    whole_spec,
)
from tokenizer.vocabulary import cif_spec, vocabulary_from_spec

# Byte pairs in the order of merging, as a trainer would find them.
PAIRS = [{"name": "piece", "tokens": [" 0", " 0.", "00", "\n_", "ce", " 0.00", " 0.000", "\n_ce"]}]
SPECS = {
    "digits": digits_spec,
    "characters": characters_spec,
    "pairs": lambda: pieces_spec("pairs", WORDS, PAIRS),
    "whole": whole_spec,
    "cell_last": cell_last_spec,
    "fine_grid": fine_grid_spec,
    "bin_offset": bin_offset_spec,
}


@functools.cache
def tokenizer_of(name: str) -> CIFTokenizer:
    return CIFTokenizer(vocabulary_from_spec(SPECS[name]()))


@pytest.fixture(scope="module", params=SPECS)
def pieces(request) -> CIFTokenizer:
    return tokenizer_of(request.param)


def test_texts_come_back_and_end_once(pieces, canonical_lexemes):
    for lexemes in canonical_lexemes[:100]:
        text = "".join(lexemes)
        ids = pieces.encode(text)
        assert pieces.decode(ids) == text
        assert ids.count(pieces.end_id) == 1 and ids[-1] == pieces.end_id
        assert pieces.pad_id not in ids and pieces.decode([*ids, pieces.pad_id]) == text
    texts = ["".join(lexemes) for lexemes in canonical_lexemes[:20]]
    assert [ids.tolist() for ids in pieces.encode_batch(texts)] == [pieces.encode(text) for text in texts]


@given(text=st.text())
@pytest.mark.parametrize("name", SPECS)
def test_any_text_comes_back(name, text):
    tokenizer = tokenizer_of(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (
        tokenizer.decode_bytes(tokenizer.encode_bytes(text.encode() + b"\xff\n\xfe")) == text.encode() + b"\xff\n\xfe"
    )


def test_digits_spell_the_numbers_and_nothing_else(canonical_lexemes):
    tokenizer = tokenizer_of("digits")
    assert "coordinate" not in tokenizer.vocabulary.classes
    for lexemes in canonical_lexemes[:100]:
        expected = []
        for lexeme in lexemes[:-1]:
            is_number = lexeme.strip(" +-\n").replace(".", "").isdigit()
            expected += list(lexeme) if is_number else [lexeme]
        ids = tokenizer.encode("".join(lexemes))
        assert [tokenizer.token(i) for i in ids[:-1]] == expected


def test_a_number_is_one_token_or_a_bin_and_an_offset(canonical_lexemes):
    whole, halves = tokenizer_of("whole"), tokenizer_of("bin_offset")
    assert whole.encode("".join(canonical_lexemes[0])) == tokenizer_of("cell_last").encode(
        "".join(canonical_lexemes[0])
    )
    for lexemes in canonical_lexemes:
        text = "".join(lexemes)
        assert [whole.token(i) for i in whole.encode(text)[:-1]] == lexemes[:-1]
        expected: list[str] = []
        for lexeme in lexemes[:-1]:
            if "." in lexeme:  # a number with decimals
                at = [place for place, character in enumerate(lexeme) if character.isdigit()][-2]
                expected += [lexeme[:at], lexeme[at:]]
            else:
                expected.append(lexeme)
        assert [halves.token(i) for i in halves.encode(text)[:-1]] == expected


@pytest.mark.parametrize("number", [" 0.000", " 0.999", "1.00", "99.99", "10.05", "10.0", "170.0", "99.9", "12.34"])
def test_the_ends_of_the_grids_are_two_tokens(number):
    tokenizer = tokenizer_of("bin_offset")
    ids = tokenizer.encode(f"\n_cell_length_a {number}\n_cell_length_b ")
    assert [len(tokenizer.token(i).replace(".", "").strip()) for i in ids[1:-1]] == [
        sum(map(str.isdigit, number)) - 2,
        2,
    ]


def test_four_decimals_are_one_token_on_the_fine_grid():
    tokenizer = tokenizer_of("fine_grid")
    assert len(tokenizer.encode("\nO c 0.0001 0.1250 0.9999")) == 5
    assert tokenizer.vocab_size == tokenizer_of("whole").vocab_size + 9000


def test_the_order_of_texts_is_part_of_a_vocabulary():
    whole, last = tokenizer_of("whole"), tokenizer_of("cell_last")
    assert whole.vocabulary.tokens == last.vocabulary.tokens and whole.hash != last.hash
    assert pickle.loads(pickle.dumps(last)).vocabulary.order == "cell_last" and whole.vocabulary.order == "canonical"
    with pytest.raises(VocabularyError, match="order 'backwards' is not known for kind 'pieces'"):
        vocabulary_from_spec(pieces_spec("mine", WORDS, order="backwards"))
    with pytest.raises(VocabularyError, match="order 'cell_last' is not known for kind 'lexemes'"):
        vocabulary_from_spec(cif_spec("mine").replace('"format":1', '"format":1,"order":"cell_last"'))


def test_characters_are_bytes_but_for_the_start(catio3):
    tokenizer = tokenizer_of("characters")
    ids = tokenizer.encode(catio3)
    assert tokenizer.token(ids[0]) == "data_" and bytes(ids[1:-1]) == catio3[5:-1].encode()
    assert tokenizer.vocab_size == 256 + 3


def test_byte_pairs_are_merged_within_words_in_order():
    tokenizer = tokenizer_of("pairs")
    tokens = [tokenizer.token(i) for i in tokenizer.encode("data_O\n_cell 0.000 0.500\n")]
    assert tokens == ["data_", "O", "\n_ce", "l", "l", " 0.000", " 0.", "5", "00", "<|end|>"]


def test_start_and_end_are_known_and_a_grammar_is_not(pieces):
    assert pieces.token(int(pieces.vocabulary.classes["data"][0])) == "data_"
    assert pieces.decode([pieces.end_id]) == "\n" and pieces.end_id == pieces.vocab_size - 2
    with pytest.raises(ValueError, match="a grammar needs a vocabulary of lexemes"):
        Grammar(pieces)
    again = pickle.loads(pickle.dumps(pieces))
    assert again.hash == pieces.hash and again.encode("data_H2\n") == pieces.encode("data_H2\n")


def test_an_end_token_that_is_a_piece_too_is_refused():
    spec = pieces_spec("mine", WORDS, [{"name": "piece", "tokens": ["<|end|>"]}])
    with pytest.raises(VocabularyError, match="the end token b'<|end|>' is a lexeme too".replace("|", r"\|")):
        vocabulary_from_spec(spec)
