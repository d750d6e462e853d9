"""Frozen encoders: asked once a text, then the cache; nothing of them in a checkpoint; decoders with labels refused."""

from __future__ import annotations

import copy
import json
import pickle
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crystallm.canonical import canonicalize
from crystallm.model.checkpoint import load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.properties.encoding_cache import EncodingCache
from crystallm.properties.frozen import DecoderEncoder, FrozenEncoder, HFEncoder, check_no_property_lines
from crystallm.resources import resource_path
from tokenizer import CIFTokenizer

TEXTS = ["The density is 5 g/cm3. It is cubic.", "Cubic.", "It has the rock salt structure. Na is bonded to 6 Cl."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"), seed=0)


def make_bert(folder: Path, seed: int) -> Path:
    transformers = pytest.importorskip("transformers")
    text = "the density is it has structure rock salt cubic bonded to na cl . / g cm3 5 6 c"
    words = text.split()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{w}" for w in ("ubic", "u"))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def hf(bert: Path, tmp_path: Path, **settings: Any) -> HFEncoder:
    torch.manual_seed(0)
    return HFEncoder(str(bert), **{"width_out": 16, "max_tokens": 32, "cache": tmp_path / "cache.sqlite3", **settings})


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"))


def write_decoder(folder: Path, properties: tuple[str, ...] = (), **more: Any) -> Path:
    tokenizer = CIFTokenizer()
    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, number_hidden=16)
    torch.manual_seed(0)
    model = GPT(config, token_spec(tokenizer))
    save_file({k: p.detach().clone() for k, p in model.named_parameters()}, folder / "model.safetensors")
    run = {"init_from": None, "data": {"properties": list(properties)}, **more.pop("run", {})}
    info = {**model_info(config, tokenizer), "run": run, **more}
    (folder / "config.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def canonical(demo) -> list[str]:
    return [canonicalize(crystal).to_text() for _, _, crystal in demo[:200:40]]


# One encoder of each kind, with texts for it.
@pytest.fixture(params=["hf", "decoder"])
def encoder_and_texts(request, bert, decoder, canonical, tmp_path) -> tuple[FrozenEncoder, list[str]]:
    if request.param == "hf":
        return hf(bert, tmp_path), TEXTS
    return DecoderEncoder(*load_checkpoint(decoder), width_out=16, cache=tmp_path / "cache.sqlite3"), canonical


def test_a_second_epoch_asks_the_model_nothing(encoder_and_texts):
    encoder, texts = encoder_and_texts
    first = encoder(encoder.collate(texts))
    assert encoder.n_read == len(texts) == len(encoder.cache)

    def never(texts):
        raise AssertionError("the model was asked again")

    encoder._hidden = never
    part = encoder.collate(texts[::-1])
    second = encoder(part.to("cpu"))
    assert first.tokens.shape[2] == encoder.width == 16
    for k, row in enumerate(reversed(range(len(texts)))):
        torch.testing.assert_close(first.tokens[k][first.mask[k]], second.tokens[row][second.mask[row]])


def test_texts_of_one_batch_do_not_touch_each_other(encoder_and_texts, tmp_path):
    encoder, texts = encoder_and_texts
    together = encoder.collate(texts)
    encoder.cache = EncodingCache(tmp_path / "other.sqlite3", encoder.cache.width)
    for k, text in enumerate(texts):
        alone = encoder.collate([text])
        torch.testing.assert_close(together.vectors[k][together.mask[k]], alone.vectors[0], atol=2e-3, rtol=2e-3)


def test_only_the_projection_is_trained_and_saved(encoder_and_texts):
    encoder, texts = encoder_and_texts
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"projection"}
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"projection"}
    before = [p.clone() for p in encoder.frozen.model.parameters()]
    encoder.train()
    encoder(encoder.collate(texts)).mean().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not encoder.frozen.model.training
    assert all(
        p.grad is None and torch.equal(p, old) for p, old in zip(encoder.frozen.model.parameters(), before, strict=True)
    )
    twin = copy.deepcopy(encoder)
    assert twin.frozen is encoder.frozen
    torch.testing.assert_close(twin(twin.collate(texts)).tokens, encoder(encoder.collate(texts)).tokens)


def test_spans_match_the_vectors(encoder_and_texts):
    encoder, texts = encoder_and_texts
    for text in texts:
        for keep in ("tokens", "sentences", "mean"):
            encoder.keep = keep
            spans = encoder.spans(text)
            assert encoder.collate([text]).mask.sum() == len(spans.starts)
            assert all(0 <= a <= b <= len(text) for a, b in zip(spans.starts, spans.ends, strict=True))
            assert spans.sentences == sorted(spans.sentences)


def test_sentences_are_means_of_their_tokens(bert, tmp_path):
    tokens, sentences, mean = (hf(bert, tmp_path, keep=keep) for keep in ("tokens", "sentences", "mean"))
    text = TEXTS[0]
    every = tokens.collate([text]).vectors[0].float()
    group = np.array(tokens.spans(text).sentences)
    assert set(group) == {0, 1} and [text[a:b] for a, b in zip(*sentences.spans(text)[:2], strict=True)] == [
        "The density is 5 g/cm3.",
        "It is cubic.",
    ]
    found = sentences.collate([text]).vectors[0].float()
    for k in (0, 1):
        torch.testing.assert_close(found[k], every[group == k].mean(dim=0), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(mean.collate([text]).vectors[0, 0].float(), every.mean(dim=0), atol=2e-3, rtol=2e-3)


def test_another_model_or_limit_has_encodings_of_its_own(bert, tmp_path, tmp_path_factory):
    other = make_bert(tmp_path_factory.mktemp("other"), seed=1)
    vectors = [
        hf(folder, tmp_path, max_tokens=limit).collate([TEXTS[0]]).vectors
        for folder, limit in ((bert, 32), (other, 32), (bert, 4))
    ]
    assert vectors[0].shape == vectors[1].shape and not torch.allclose(vectors[0], vectors[1])
    assert vectors[2].shape[1] == 4
    assert hf(bert, tmp_path).model_hash == hf(bert, tmp_path).model_hash != hf(other, tmp_path).model_hash


def test_the_vectors_are_those_of_transformers(bert, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    part = hf(bert, tmp_path).collate(TEXTS)
    for k, text in enumerate(TEXTS):
        with torch.no_grad():
            wanted = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(part.vectors[k][part.mask[k]].float(), wanted, atol=2e-3, rtol=2e-3)


def test_what_cannot_be_had_is_said(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="give the folder of a copy, or take the text encoder 'words'"):
        HFEncoder(str(tmp_path / "nothing"), cache=tmp_path / "c")
    with pytest.raises(ValueError, match="reads 64 tokens at most, got max_tokens=100"):
        hf(bert, tmp_path, max_tokens=100)
    with pytest.raises(ValueError, match="keep must be one of tokens, sentences, mean, got 'all'"):
        hf(bert, tmp_path, keep="all")
    with pytest.raises(ValueError, match=r"text 1 is empty: ''"):
        hf(bert, tmp_path).collate(["Si", ""])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="needs transformers: install crystallm with its extra `hf`"):
        HFEncoder(str(bert), cache=tmp_path / "c")


def test_the_cache_is_read_by_copies_and_by_other_processes(tmp_path):
    cache = EncodingCache(tmp_path / "deep" / "cache.sqlite3", 3)
    row = np.arange(6, dtype=np.float16).reshape(2, 3)
    cache.put({b"a": row})
    again = pickle.loads(pickle.dumps(cache))
    again.put({b"b": row + 1, b"a": row + 5})
    found = cache.get([b"a", b"b", b"c", b"a"])
    assert found.keys() == {b"a", b"b"}
    np.testing.assert_array_equal(found[b"a"], row)
    many = {bytes([k // 256, k % 256]): row for k in range(1200)}
    cache.put(many)
    assert len(again.get(many)) == 1200 and len(cache) == 1202
    (tmp_path / "broken").write_text("no database, but some text that is longer than a header" * 20)
    with pytest.raises(ValueError, match="cannot be used as a cache of encodings"):
        EncodingCache(tmp_path / "broken", 3).get([b"a"])


def test_the_cache_takes_two_writers(tmp_path):
    first, second = (EncodingCache(tmp_path / "cache", 1) for _ in range(2))
    row = np.zeros((1, 1), dtype=np.float16)
    for k in range(20):
        (first if k % 2 else second).put({bytes([k]): row})
    assert len(first) == len(second) == 20
    assert sqlite3.connect(tmp_path / "cache").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_no_decoder_that_read_property_lines(decoder, tmp_path):
    good = load_checkpoint(decoder)
    check_no_property_lines(good[2])
    with pytest.raises(ValueError, match=r"trained with property lines \(formation_energy_ev_per_atom"):
        check_no_property_lines(load_checkpoint(resource_path("resources/model"))[2])
    (tmp_path / "told").mkdir()
    told = load_checkpoint(write_decoder(tmp_path / "told", properties=("band_gap_ev", "density_g_per_cm3")))
    with pytest.raises(ValueError, match=r"trained with property lines \(band_gap_ev, density_g_per_cm3\)"):
        DecoderEncoder(*told, cache=tmp_path / "c")
    (tmp_path / "silent").mkdir()
    silent = load_checkpoint(write_decoder(tmp_path / "silent"))
    del silent[2]["run"]
    with pytest.raises(ValueError, match="does not say what the decoder was trained on"):
        DecoderEncoder(*silent, cache=tmp_path / "c")


def test_what_a_decoder_was_started_from_counts_too(decoder, tmp_path):
    bases = {"told": ("band_gap_ev",), "fine": ()}
    for name, properties in bases.items():
        (tmp_path / name).mkdir()
        write_decoder(tmp_path / name, properties)
    (tmp_path / "next").mkdir()

    def started_from(base: Path, model_hash: str) -> dict[str, Any]:
        folder = write_decoder(tmp_path / "next", run={"init_from": str(base)}, provenance={"init_from": model_hash})
        return load_checkpoint(folder)[2]

    model_hash = load_checkpoint(decoder)[2]["model_hash"]
    check_no_property_lines(started_from(tmp_path / "fine", model_hash))
    with pytest.raises(ValueError, match=r"started from .*told: this decoder was trained with property lines"):
        check_no_property_lines(started_from(tmp_path / "told", model_hash))
    for base, hash_ in ((tmp_path / "gone", model_hash), (tmp_path / "fine", "another")):
        with pytest.raises(ValueError, match="not there any more, so it is not known whether"):
            check_no_property_lines(started_from(base, hash_))


def test_no_property_line_reaches_the_decoder(decoder, canonical, tmp_path):
    encoder = DecoderEncoder(*load_checkpoint(decoder), cache=tmp_path / "c")
    with pytest.raises(ValueError, match=r"text 0 states a property, '# band_gap_ev \+1.10'"):
        encoder.collate(["# band_gap_ev +1.10\n" + canonical[0]])


@torch.no_grad()
def test_the_decoders_vectors_are_its_hidden_states(decoder, canonical, tmp_path):
    model, tokenizer, info = load_checkpoint(decoder)
    part = DecoderEncoder(model, tokenizer, info, cache=tmp_path / "c", max_tokens=40).collate(canonical)
    for k, text in enumerate(canonical):
        wanted = model(torch.tensor([tokenizer.encode(text)[:60]]))[0][:40]  # a longer text, cut
        torch.testing.assert_close(part.vectors[k][part.mask[k]].float(), wanted, atol=2e-3, rtol=2e-3)
