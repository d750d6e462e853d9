import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import CIFTokenizer

# Text that looks like CIF, so that Hypothesis also draws broken lexemes and not only free Unicode.
FRAGMENTS = [
    "data_",
    "Ca",
    "O3",
    "\n",
    " ",
    "\nloop_",
    "_cell_length_a ",
    " Pm-3m",
    "3.89",
    "90.0",
    " 0.500",
    "+1.10\n",
]
FRAGMENTS += [
    "# band_gap_ev ",
    "<|pad|>",
    "é",
    "\r\n",
    "\x00",
    "0",
    ".",
    "H-M",
    "_",
    "\n_symmetry_space_group_name_H-M",
]
cif_like = st.lists(st.sampled_from(FRAGMENTS)).map("".join)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


def test_example_by_hand(tok, catio3):
    tokens = [tok.token(id_) for id_ in tok.encode(catio3)]
    assert tokens[:7] == ["data_", "Ca", "Ti", "O", "3", "\n_crystallm_primitive_formula_units ", "1"]
    assert tokens[7:11] == ["\n_symmetry_space_group_name_H-M", " Pm-3m", "\n_cell_length_a ", "3.89"]
    assert tokens[22:27] == ["\nCa", " a", " 0.000", " 0.000", " 0.000"]
    assert len(tokens) == 38


def test_every_lexeme_of_canonical_texts_is_one_token(tok, canonical_lexemes):
    for lexemes in canonical_lexemes:
        ids = tok.encode("".join(lexemes))
        assert [tok.token(id_) for id_ in ids] == lexemes
        assert ids == [tok.id(lexeme) for lexeme in lexemes]


@pytest.mark.parametrize(
    "name", ["length", "angle", "space_group", "wyckoff", "coordinate", "property_value", "integer"]
)
def test_every_token_of_a_class_in_its_place(tok, name):
    place = {
        "length": "\n_cell_length_a {}\n_cell_length_b ",
        "angle": "\n_cell_angle_alpha {}\nloop_\n",
        "space_group": "\n_symmetry_space_group_name_H-M{}\n_cell_length_a ",
        "wyckoff": "\nCa{} 0.000",
        "coordinate": " 0.000{}{}\nO a",
        "property_value": "# band_gap_ev {}data_",
        "integer": "\n_crystallm_primitive_formula_units {}\n_symmetry_space_group_name_H-M",
    }[name]
    for id_ in tok.vocabulary.classes[name]:
        assert int(id_) in tok.encode(place.replace("{}", tok.token(id_)))


@given(unicode_text | cif_like)
@settings(max_examples=500, deadline=None)
def test_lossless_on_any_text(text):
    tok = CIFTokenizer()
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.pad_id not in ids
    assert max(ids, default=0) < tok.vocab_size
    assert tok.encode_bytes(text.encode()) == ids


@given(st.binary() | st.tuples(st.binary(), cif_like).map(lambda pair: pair[0] + pair[1].encode() + pair[0]))
@settings(max_examples=500, deadline=None)
def test_lossless_on_any_bytes(data):
    tok = CIFTokenizer()
    assert tok.decode_bytes(tok.encode_bytes(data)) == data


def test_large_odd_texts_are_lossless(tok):
    for text in ("\n_" + "a" * 100_000 + " ", " P" + "1" * 100_000, "# " * 50_000, "é" * 50_000):
        assert tok.decode(tok.encode(text)) == text


def test_lone_surrogate_is_refused_by_position(tok):
    with pytest.raises(ValueError, match=r"'\\ud800' at position 5"):
        tok.encode("data_\ud800")
    with pytest.raises(ValueError, match=r"text 1: .* position 0"):
        tok.encode_batch(["data_", "\udfff"])


def test_pad_is_never_text(tok):
    ids = tok.encode("<|pad|>")
    assert tok.pad_id not in ids and tok.decode(ids) == "<|pad|>"
    assert tok.decode([*tok.encode("NaCl"), tok.pad_id, tok.pad_id]) == "NaCl"


@given(st.lists(unicode_text | cif_like | st.just("data_NaCl\n") | st.just("# é\n"), max_size=30), st.integers(1, 2))
@settings(max_examples=200, deadline=None)
def test_batch_is_encode_of_each(texts, threads):
    tok = CIFTokenizer()
    batch = tok.encode_batch(texts, threads)
    assert [ids.tolist() for ids in batch] == [tok.encode(text) for text in texts]
    assert all(ids.dtype == np.uint16 for ids in batch)


def test_batch_of_canonical_texts(tok, canonical_lexemes):
    texts = ["".join(lexemes) for lexemes in canonical_lexemes]
    assert [ids.tolist() for ids in tok.encode_batch(texts)] == [tok.encode(text) for text in texts]


def test_decode_takes_arrays_and_refuses_strange_ids(tok):
    assert tok.decode(np.array(tok.encode("NaCl"), dtype=np.uint16)) == "NaCl"
    assert tok.decode(iter(tok.encode("NaCl"))) == "NaCl"
    with pytest.raises(ValueError, match=f"token 1: id {tok.vocab_size} is outside"):
        tok.decode([65, tok.vocab_size])
    with pytest.raises(ValueError, match="id -1 is outside"):
        tok.decode([-1])
    with pytest.raises(ValueError, match="one row of integers"):
        tok.decode(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(UnicodeDecodeError):
        tok.decode([0xFF])
    assert tok.decode([0xFF], errors="replace") == "\ufffd"


def test_names_of_tokens(tok):
    assert tok.token(tok.id(" Pm-3m")) == " Pm-3m"
    assert tok.token(0xFF) == "\\xff"
    with pytest.raises(ValueError, match=r"'0\.5' is not one token"):
        tok.id("0.5")
    with pytest.raises(ValueError, match="outside 0"):
        tok.token(-1)
    with pytest.raises(ValueError, match="on_unknown must be"):
        CIFTokenizer(on_unknown="ignore")


def test_pickles_small_and_shares_its_encoder(tok):
    data = pickle.dumps(tok)
    again = pickle.loads(data)
    assert len(data) < 1000
    assert again.vocabulary is tok.vocabulary and again._bpe is tok._bpe
