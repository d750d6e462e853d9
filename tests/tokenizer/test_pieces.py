"""Vocabularies without a grammar: lossless, one end token, and pieces that can be told beforehand."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import CIFTokenizer, Grammar, VocabularyError
from tokenizer.pieces import WORDS, characters_spec, digits_spec, pieces_spec
from tokenizer.vocabulary import vocabulary_from_spec

# Byte pairs in the order of merging, as a trainer would find them.
PAIRS = [{"name": "piece", "tokens": [" 0", " 0.", "00", "\n_", "ce", " 0.00", " 0.000", "\n_ce"]}]
SPECS = {"digits": digits_spec(), "characters": characters_spec(), "pairs": pieces_spec("pairs", WORDS, PAIRS)}


@pytest.fixture(scope="module", params=SPECS)
def pieces(request) -> CIFTokenizer:
    return CIFTokenizer(vocabulary_from_spec(SPECS[request.param]))


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
    tokenizer = CIFTokenizer(vocabulary_from_spec(SPECS[name]))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (
        tokenizer.decode_bytes(tokenizer.encode_bytes(text.encode() + b"\xff\n\xfe")) == text.encode() + b"\xff\n\xfe"
    )


def test_digits_spell_the_numbers_and_nothing_else(canonical_lexemes):
    tokenizer = CIFTokenizer(vocabulary_from_spec(SPECS["digits"]))
    for lexemes in canonical_lexemes[:100]:
        expected = []
        for lexeme in lexemes[:-1]:
            is_number = lexeme.strip(" +-\n").replace(".", "").isdigit()
            expected += list(lexeme) if is_number else [lexeme]
        ids = tokenizer.encode("".join(lexemes))
        assert [tokenizer.token(i) for i in ids[:-1]] == expected


def test_characters_are_bytes_but_for_the_start(catio3):
    tokenizer = CIFTokenizer(vocabulary_from_spec(SPECS["characters"]))
    ids = tokenizer.encode(catio3)
    assert tokenizer.token(ids[0]) == "data_" and bytes(ids[1:-1]) == catio3[5:-1].encode()
    assert tokenizer.vocab_size == 256 + 3


def test_byte_pairs_are_merged_within_words_in_order():
    tokenizer = CIFTokenizer(vocabulary_from_spec(SPECS["pairs"]))
    tokens = [tokenizer.token(i) for i in tokenizer.encode("data_O\n_cell 0.000 0.500\n")]
    assert tokens == ["data_", "O", "\n_ce", "l", "l", " 0.000", " 0.", "5", "00", "<|end|>"]


def test_start_and_end_are_known_and_a_grammar_is_not(pieces):
    assert pieces.token(int(pieces.vocabulary.classes["data"][0])) == "data_"
    assert pieces.decode([pieces.end_id]) == "\n" and pieces.end_id == pieces.vocab_size - 2
    assert "coordinate" not in pieces.vocabulary.classes
    with pytest.raises(ValueError, match="a grammar needs a vocabulary of lexemes"):
        Grammar(pieces)
    again = pickle.loads(pickle.dumps(pieces))
    assert again.hash == pieces.hash and again.encode("data_H2\n") == pieces.encode("data_H2\n")


def test_an_end_token_that_is_a_piece_too_is_refused():
    spec = pieces_spec("mine", WORDS, [{"name": "piece", "tokens": ["<|end|>"]}])
    with pytest.raises(VocabularyError, match="the end token b'<|end|>' is a lexeme too".replace("|", r"\|")):
        vocabulary_from_spec(spec)
