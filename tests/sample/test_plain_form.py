"""A model over digits, byte pairs or characters is trained, prompted and read as ours is, without constraints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.retokenize import bpe_spec
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.plain_form import PlainForm
from crystallm.sample.prompts import benchmark_prompt, parse_prompt
from crystallm.train.synthetic import random_text
from tokenizer import CIFTokenizer
from tokenizer.pieces import GPT2_WORDS, WORDS, characters_spec, digits_spec
from tokenizer.vocabulary import vocabulary_from_spec


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [random_text(rng) for _ in range(60)]


@pytest.fixture(scope="module", params=["digits", "characters", "bpe", "bpe_gpt2"])
def pieces(request, texts) -> CIFTokenizer:
    if request.param.startswith("bpe"):
        words = {"bpe": WORDS, "bpe_gpt2": GPT2_WORDS}[request.param]
        return CIFTokenizer(vocabulary_from_spec(bpe_spec(texts, 300, request.param, words)))
    return CIFTokenizer(vocabulary_from_spec({"digits": digits_spec(), "characters": characters_spec()}[request.param]))


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


def test_a_text_learned_by_heart_is_drawn_and_read(pieces, root):
    crystal, _ = parse_cif((root / "tests/cifs/NaCl.cif").read_text())
    text = canonicalize(crystal).to_text()
    ids = np.array(pieces.encode(text))
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
