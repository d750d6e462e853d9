import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenizer import CIFTokenizer, Grammar, VocabularyError, load_vocabulary
from tokenizer.vocabulary import FOLDER, cif_spec

# A checkpoint names these: a change makes every published model unreadable, and needs a new vocabulary name instead.
HASHES = {
    "cif": "61d04b0a2d731654047d10db2979aa3913bbacbd68f5ebc5ed80aa6caee6dfa1",
    "crystallm_v1": "23e5782efa9cc8893328f8c90f33b0b5bb9e91bfec731db441b3cff042f56f3f",
}


@pytest.mark.parametrize("name", HASHES)
def test_published_vocabularies_do_not_change(name):
    vocabulary = load_vocabulary(name)
    assert vocabulary.hash == HASHES[name]
    packed = b"".join(len(token).to_bytes(4, "little") + token for token in vocabulary.tokens)
    assert vocabulary.hash == hashlib.sha256(packed).hexdigest()


def test_stored_file_is_what_the_rules_give():
    assert (FOLDER / "cif.json").read_text() == cif_spec()


def test_ids_and_classes(tok):
    classes = tok.vocabulary.classes
    assert [tok.vocabulary.tokens[i] for i in range(256)] == [bytes([i]) for i in range(256)]
    assert len(set(tok.vocabulary.tokens)) == tok.vocab_size == 25_242
    assert tok.id("H") == ord("H") and tok.id("3") == ord("3") and tok.end_id == ord("\n")
    assert tok.pad_id == tok.vocab_size - 1 and tok.token(tok.pad_id) == "<|pad|>"
    expected = {"formula_element": 118, "site_element": 118, "integer": 999, "space_group": 230, "wyckoff": 27}
    expected |= {"length": 9900, "angle": 1601, "coordinate": 1000, "property_value": 11_000, "byte": 256, "pad": 1}
    assert {name: len(classes[name]) for name in expected} == expected
    assert all(ids.dtype == np.int32 for ids in classes.values())
    assert tok.token(classes["space_group"][220]) == " Pm-3m" and tok.token(classes["wyckoff"][26]) == " A"
    formula = [tok.token(i) for i in classes["formula_element"]]
    assert [tok.token(i) for i in classes["site_element"]] == ["\n" + symbol for symbol in formula]


def test_every_token_is_reached_by_its_class(tok):
    reached = np.unique(np.concatenate(list(tok.vocabulary.classes.values())))
    assert np.array_equal(reached, np.arange(tok.vocab_size))


def test_values_are_the_numbers_written(tok):
    numeric = ("integer", "length", "angle", "coordinate", "property_value")
    for name in numeric:
        ids = tok.vocabulary.classes[name]
        values = tok.vocabulary.values[ids]
        assert np.array_equal(values, np.array([float(tok.token(i)) for i in ids], dtype=np.float32))
        assert (np.diff(values) > 0).all()
    numbers = np.concatenate([tok.vocabulary.classes[name] for name in numeric])
    assert np.isnan(np.delete(tok.vocabulary.values, numbers)).all()
    assert tok.vocabulary.decimals == {"integer": 0, "length": 2, "angle": 1, "coordinate": 3, "property_value": 2}


def test_other_precision_comes_from_a_file(tmp_path, catio3):
    path = tmp_path / "fine.json"
    path.write_text(cif_spec("fine", coordinate=("0.0000", "0.9999"), angle=("10.00", "170.00")))
    tok = CIFTokenizer(path)
    text = catio3.replace("0.500", "0.5000").replace("0.000", "0.0000").replace("90.0", "90.00")
    assert len(tok.encode(text)) == 38 < len(tok.encode(catio3))
    assert tok.id("90.00") in tok.vocabulary.classes["length"] and tok.id("90.00") in tok.vocabulary.classes["angle"]
    assert (
        Grammar(tok).slots(tok.encode(text)).tolist()
        == Grammar(CIFTokenizer()).slots(CIFTokenizer().encode(catio3)).tolist()
    )
    assert tok.decode(tok.encode(catio3)) == catio3
    assert tok.hash != CIFTokenizer().hash
    again = pickle.loads(pickle.dumps(tok))
    assert again.hash == tok.hash and again.encode(text) == tok.encode(text)


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "mine.json"
    with pytest.raises(VocabularyError, match="'cfi' is neither one of"):
        CIFTokenizer("cfi")
    for content, message in (
        ("{", "not JSON"),
        ('{"name": "mine"}', "field 'kind' is missing"),
        ('{"name": "mine", "kind": "x"}', "kind 'x' is neither"),
        (cif_spec("mine", length=("1.000", "99.999")), "coarsen a grid"),
        (cif_spec("mine", length=("1.0", "99.99")), "differ in their number of decimals"),
        (cif_spec("cif", length=("1.00", "50.00")), "needs another name"),
    ):
        path.write_text(content)
        with pytest.raises(VocabularyError, match=message):
            CIFTokenizer(path)
    twice = json.loads(cif_spec("mine"))
    twice["classes"][1]["tokens"].append("Na")
    path.write_text(json.dumps(twice))
    with pytest.raises(VocabularyError, match="'formula_element' holds a lexeme twice"):
        CIFTokenizer(path)


def test_import_does_no_work():
    code = """
import sys, tokenizer
from tokenizer import cif_tokenizer, vocabulary
assert vocabulary._built_in.cache_info().currsize == 0 and cif_tokenizer._encoding.cache_info().currsize == 0
assert not {"torch", "pymatgen", "spglib", "crystallm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
