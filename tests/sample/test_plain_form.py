"""A model over digits, byte pairs or other texts is trained, prompted and read as ours is, without constraints."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.retokenize import SPECS, bpe_spec
from crystallm.layout import layout_of
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.records import CIFRecord
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.plain_form import PlainForm
from crystallm.sample.prompts import benchmark_prompt, parse_prompt
from crystallm.train.synthetic import random_text
from tokenizer import CIFTokenizer
from tokenizer.pieces import GPT2_WORDS, WORDS
from tokenizer.vocabulary import vocabulary_from_spec


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [random_text(rng) for _ in range(60)]


@pytest.fixture(scope="module", params=[*SPECS, "bpe", "bpe_gpt2"])
def pieces(request, texts) -> CIFTokenizer:
    if request.param.startswith("bpe"):
        words = {"bpe": WORDS, "bpe_gpt2": GPT2_WORDS}[request.param]
        return CIFTokenizer(vocabulary_from_spec(bpe_spec(texts, 300, request.param, words)))
    return CIFTokenizer(vocabulary_from_spec(SPECS[request.param]()))


def test_a_prompt_is_the_beginning_of_the_text_it_asks_for(pieces, texts):
    form = PlainForm(pieces)
    for text in texts:
        head, units, group = text.split("\n")[:3]
        sources = [head.removeprefix("data_"), "", f"{head}\n{units}\n{group}", f"{head}\n{units}"]
        prompts = [parse_prompt(sources[0]), *(parse_prompt(source) for source in sources[1:])]
        for prompt in prompts:
            if prompt.text.startswith(head) or prompt.text == "data_":  # a formula in the order of the text
                ids, new = form.begin(prompt, "none")
                assert pieces.encode(text)[: len(ids)] == ids
                assert len(prompt.text.rstrip()) - 24 <= len(pieces.decode(ids)) <= len(prompt.text) + 1
                assert not new().finished


def test_what_cannot_be_asked_without_a_grammar(pieces):
    form = PlainForm(pieces)
    for prompt, mode, message in (
        (parse_prompt("NaCl"), "full", "has no grammar, so samples cannot be constrained; got constraints=full"),
        (parse_prompt("Na4Cl4"), "none", "a prompt is a reduced formula or a CIF prefix"),
        (parse_prompt("Na-Cl"), "none", "a prompt is a reduced formula or a CIF prefix"),
        (parse_prompt("NaCl", space_group=225), "none", "a prompt is a reduced formula or a CIF prefix"),
    ):
        with pytest.raises(PromptError, match=message):
            form.begin(prompt, mode)
    ids, _ = form.begin(parse_prompt("NaCl", space_group=225, formula_units=1), "none")
    assert "Fm-3m" in pieces.decode(ids)


# Of the large vocabularies, which cost seconds, cell_last stands for whole and fine_grid.
LEARNED = ["digits", "characters", "bpe", "bpe_gpt2", "cell_last", "bin_offset"]


@pytest.mark.parametrize("pieces", LEARNED, indirect=True)
def test_a_text_learned_by_heart_is_drawn_and_read(pieces, root):
    crystal, _ = parse_cif((root / "tests/cifs/NaCl.cif").read_text())
    text = canonicalize(crystal).to_text()
    ids = np.array(pieces.encode(layout_of(pieces.vocabulary).write(text)))
    torch.manual_seed(0)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=500, position="learned", loss="full")
    model = GPT(config, token_spec(pieces, "full"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = make_batch([ids], model.spec)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
    generator = Generator(model.eval(), pieces)
    [record] = generator.generate_from([benchmark_prompt(crystal)], GenerateConfig(num=1, temperature=0, seed=0))
    assert record.text == text and record.rejected_by is None
    assert "_symmetry_Int_Tables_number 225" in record.cif
    given = len(generator.form.begin(benchmark_prompt(crystal), "none")[0])
    total, _ = model.log_likelihood([ids], [given])
    assert record.scores["log_likelihood_nats"] == pytest.approx(float(total), abs=1e-3)


@pytest.mark.parametrize("name", ["whole", "cell_last", "bin_offset", "fine_grid"])
def test_what_an_untrained_model_writes_is_rejected_with_its_reason(name):
    tokenizer = CIFTokenizer(vocabulary_from_spec(SPECS[name]()))
    torch.manual_seed(0)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=48, number_hidden=8, loss="full")
    generator = Generator(GPT(config, token_spec(tokenizer, "full")).eval(), tokenizer)
    records = generator.generate_from([parse_prompt("NaCl")], GenerateConfig(num=6, seed=0))
    assert len(records) == 6 and all(record.rejected_by and record.reason for record in records)
    for text, reason, message in (
        ("data_NaCl\n", "syntax", "data_NaCl"),
        (layout_of(tokenizer.vocabulary).write(SALT).replace("Cl b", "Cl z"), "syntax", "no Wyckoff position 'z'"),
        (layout_of(tokenizer.vocabulary).write(SALT).replace("_cell_length_a", "_cell_a"), "syntax", "canonical|order"),
        (layout_of(tokenizer.vocabulary).write(SALT).replace("90.0\n", "170.0\n"), "bad_cell", "170"),
    ):
        record = generator.form.finish(CIFRecord("x", text, text=text))
        assert record.rejected_by == reason and re.search(message, record.reason), record


def test_a_sample_in_another_layout_becomes_canonical_text():
    for name, old, new in (
        ("cell_last", SALT, SALT_CELL_LAST),
        ("fine_grid", SALT, SALT.replace(" 0.000", " 0.0000").replace(" 0.500", " 0.5000")),
        ("bin_offset", SALT, SALT),
    ):
        form = PlainForm(CIFTokenizer(vocabulary_from_spec(SPECS[name]())))
        assert form.layout.write(old) == new
        record = form.finish(CIFRecord("x", new, text=new))
        assert record.rejected_by is None and record.text == old and "_symmetry_Int_Tables_number 225" in record.cif
        assert record.provenance.get("model_text", old) == new


def test_a_prompt_ends_where_another_layout_begins():
    whole_head, with_cell = SALT.partition("\n_cell")[0], SALT.partition("\nloop_")[0]
    with_sites = SALT.rpartition("\nCl")[0]
    for name, good, bad in (("cell_last", whole_head, with_cell), ("fine_grid", with_cell, with_sites)):
        tokenizer = CIFTokenizer(vocabulary_from_spec(SPECS[name]()))
        ids, _ = PlainForm(tokenizer).begin(parse_prompt(good), "none")
        assert tokenizer.decode(ids) == good
        with pytest.raises(PromptError, match="a prompt ends before them"):
            PlainForm(tokenizer).begin(parse_prompt(bad), "none")


SALT = """data_NaCl
_crystallm_primitive_formula_units 1
_symmetry_space_group_name_H-M Fm-3m
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 90.0
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na a 0.000 0.000 0.000
Cl b 0.500 0.500 0.500
"""
SALT_CELL_LAST = """data_NaCl
_crystallm_primitive_formula_units 1
_symmetry_space_group_name_H-M Fm-3m
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na a 0.000 0.000 0.000
Cl b 0.500 0.500 0.500
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 90.0
"""
