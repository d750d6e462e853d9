"""Shards in another vocabulary hold the same texts, ids and properties; a model's nats are over all of their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.retokenize import NAMES, bpe_spec, retokenize, shards_tokenizer
from crystallm.data.shards import ShardError, ShardWriter, open_shards, read_meta, write_meta
from crystallm.layout import layout_of
from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import export_checkpoint, load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.train.synthetic import random_text
from tokenizer import CIFTokenizer
from tokenizer.pieces import WORDS, pattern_of
from tokenizer.vocabulary import vocabulary_from_spec

N_TRAIN, N_VAL = 150, 20


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder, tokenizer, rng = tmp_path_factory.mktemp("shards"), CIFTokenizer(), np.random.default_rng(0)
    counts = {}
    for split, n in (("train", N_TRAIN), ("val", N_VAL)):
        with ShardWriter(folder, split, ["band_gap_ev"]) as writer:
            for k in range(n):
                ids = np.array(tokenizer.encode(random_text(rng)), dtype=np.uint16)
                writer.add(f"{split}-{k}", ids, {"band_gap_ev": 0.1 * k} if k % 2 else {})
        counts[split] = writer.counts()
    write_meta(folder, {"vocabulary": "cif", "vocabulary_hash": tokenizer.hash, "source": ["x"], "counts": counts})
    return folder


@pytest.fixture(scope="module")
def real_texts(root) -> dict[str, str]:
    """By name of the CIF."""
    return {
        name: canonicalize(parse_cif((root / f"tests/cifs/{name}.cif").read_text())[0]).to_text()
        for name in ("quartz", "ZrO2", "hematite")
    }


@pytest.fixture
def real_shards(real_texts, tmp_path):
    folder, tokenizer, counts = tmp_path / "source", CIFTokenizer(), {}
    for split in ("train", "val"):
        with ShardWriter(folder, split) as writer:
            for name, text in real_texts.items():
                writer.add(name, np.array(tokenizer.encode(text)))
        counts[split] = writer.counts()
    write_meta(folder, {"vocabulary": "cif", "vocabulary_hash": tokenizer.hash, "counts": counts})
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fine_grid"])
def test_texts_ids_and_properties_stay(source, tmp_path, name):
    meta = retokenize(source, tmp_path / name, name, n_merges=200)
    tokenizer = shards_tokenizer(tmp_path / name)
    assert meta == read_meta(tmp_path / name) and tokenizer.hash == meta["vocabulary_hash"]
    old, new = open_shards(source, "train"), open_shards(tmp_path / name, "train", tokenizer.hash)
    assert new.ids == old.ids and len(new) == N_TRAIN
    np.testing.assert_array_equal(new.properties["band_gap_ev"], old.properties["band_gap_ev"])
    for before, after in zip(old, new, strict=True):
        written = tokenizer.decode(after)
        assert layout_of(tokenizer.vocabulary).read(written) == CIFTokenizer().decode(before)
        assert (written.index("_cell_") > written.index("loop_")) == (name == "cell_last")
        assert after[-1] == tokenizer.end_id
    assert meta["counts"]["val"]["structures"] == N_VAL
    with pytest.raises(ShardError, match="finished shards lie here already"):
        retokenize(source, tmp_path / name, name)


def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"random_descriptions must be 0 \(the texts themselves\) or more, got -1"):
        retokenize(source, tmp_path / "new", "cif", random_descriptions=-1)
    with pytest.raises(ValueError, match="file is a file; wanted a folder"):
        retokenize(source, tmp_path / "file", "cif")
    assert not (tmp_path / "new").exists() and (tmp_path / "file").read_text() == "mine"


def test_an_unknown_vocabulary_is_answered_with_all_there_are(source, tmp_path):
    with pytest.raises(ValueError, match=r"no vocabulary 'nonsense'; wanted digits, .*bpe_gpt2, cif, crystallm_v1"):
        retokenize(source, tmp_path / "out", "nonsense")
    assert not (tmp_path / "out").exists()


def test_the_same_structures_are_left_out_in_every_vocabulary(source, tmp_path):
    lengths = open_shards(source, "train").lengths
    longest = int(np.median(lengths))
    left = {}
    for name in ("digits", "characters"):
        meta = retokenize(source, tmp_path / name, name, longest=longest)
        left[name] = open_shards(tmp_path / name, "train").ids
        assert meta["retokenized_from"]["left_out"]["train"] == (lengths > longest).sum() > 0
    assert left["digits"] == left["characters"]


def test_byte_pairs_are_those_of_the_trainer(source):
    """tiktoken, which encodes, cuts texts as `tokenizers`, which learned the pairs, does."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    shards, cif = open_shards(source, "train"), CIFTokenizer()
    texts = [cif.decode(ids) for ids in shards]
    ours = CIFTokenizer(vocabulary_from_spec(bpe_spec(texts[:100], 300, "mine")))
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Split(Regex(pattern_of(WORDS)), "isolated")
    alphabet = [chr(byte) for byte in range(128)]
    trainer = trainers.BpeTrainer(vocab_size=128 + 300, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator((text[:-1] for text in texts[:100]), trainer)
    for text in texts[100:]:
        cut = [ours.token(i) for i in ours.encode(text)[:-1]]
        assert cut == theirs.encode(text[:-1]).tokens
    assert np.mean([len(ours.encode(text)) for text in texts]) < 0.3 * np.mean([len(text) for text in texts])
    with pytest.raises(ValueError, match="text 1: byte pairs are merged for ASCII texts"):
        bpe_spec(["data_H\n", "data_é\n"], 10, "mine")


def test_nats_are_over_all_tokens_but_the_start(source, tmp_path):
    retokenize(source, tmp_path / "digits", "digits")
    tokenizer = shards_tokenizer(tmp_path / "digits")
    torch.manual_seed(0)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=400, number_hidden=8, loss="full")
    model = GPT(config, token_spec(tokenizer, "full")).eval()
    sequences = [open_shards(tmp_path / "digits", "val")[k] for k in range(4)]
    with torch.no_grad():
        found, _ = model.log_likelihood(sequences)
        for ids, log_likelihood in zip(sequences, found.tolist(), strict=True):
            tokens = torch.from_numpy(ids.astype(np.int64))
            logits = model(tokens[None])[0] @ model.table().T
            nats = F.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
            assert log_likelihood == pytest.approx(-float(nats), rel=1e-4)
        loss = model.loss(make_batch(sequences, model.spec))
    assert float(loss.total) == pytest.approx(-float(found.sum()), rel=1e-4)


def test_the_vocabulary_travels_with_the_checkpoint(source, tmp_path):
    import json

    from safetensors.torch import save_file

    retokenize(source, tmp_path / "bpe", "bpe", n_merges=50)
    tokenizer = shards_tokenizer(tmp_path / "bpe")
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, number_hidden=8, loss="full")
    model = GPT(config, token_spec(tokenizer, "full"))
    (tmp_path / "run").mkdir()
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "run/model.safetensors")
    (tmp_path / "run/config.json").write_text(json.dumps(model_info(config, tokenizer)))
    _, loaded, _ = load_checkpoint(export_checkpoint(tmp_path / "run", tmp_path / "small"))
    assert loaded.hash == tokenizer.hash and loaded.encode("data_NaCl\n") == tokenizer.encode("data_NaCl\n")


def test_cell_last_shards_go_back_to_canonical_ones(real_shards, real_texts, tmp_path):
    retokenize(real_shards, tmp_path / "last", "cell_last")
    retokenize(tmp_path / "last", tmp_path / "again", "cif")
    again = open_shards(tmp_path / "again", "val", CIFTokenizer().hash)
    assert [CIFTokenizer().decode(ids) for ids in again] == list(real_texts.values())


def test_a_finer_grid_is_read_from_the_cifs(real_shards, real_texts, root, tmp_path):
    cifs = [root / f"tests/cifs/{name}.cif" for name in real_texts]
    meta = retokenize(real_shards, tmp_path / "fine", "fine_grid", records=cifs)
    tokenizer = shards_tokenizer(tmp_path / "fine")
    shards = open_shards(tmp_path / "fine", "train", tokenizer.hash)
    texts = {name: tokenizer.decode(ids) for name, ids in zip(shards.ids, shards, strict=True)}
    assert list(texts) == list(real_texts) and meta["retokenized_from"]["not_described"] == {}
    assert "Si a 0.4697 0.0000 0.6667\n" in texts["quartz"]  # as the paper states it
    assert [len(ids) for ids in shards] == open_shards(real_shards, "train").lengths.tolist()
    for name, text in texts.items():
        fine, coarse = AsymmetricUnit.from_text(text), AsymmetricUnit.from_text(real_texts[name])
        assert (fine.cell, fine.formula) == (coarse.cell, coarse.formula)
    assert layout_of(tokenizer.vocabulary).read(texts["quartz"]) == real_texts["quartz"]

    with pytest.raises(ShardError, match="2 structures are not among the records, the first is 'ZrO2'"):
        retokenize(real_shards, tmp_path / "few", "fine_grid", records=cifs[:1])
    with pytest.raises(ShardError, match="'fine_grid' writes coordinates with 4 decimals: records are wanted"):
        retokenize(real_shards, tmp_path / "none", "fine_grid")
    with pytest.raises(ShardError, match="'digits' writes coordinates with 3 decimals"):
        retokenize(real_shards, tmp_path / "digits", "digits", records=cifs)
    (tmp_path / "other").mkdir()
    for name in real_texts:
        (tmp_path / f"other/{name}.cif").write_text((root / "tests/cifs/NaCl.cif").read_text())
    with pytest.raises(ShardError, match=r"quartz: 'data_NaCl.*among the records, 'data_SiO2.*in the shards"):
        retokenize(real_shards, tmp_path / "swapped", "fine_grid", records=[tmp_path / "other/quartz.cif"])
    (tmp_path / "other/quartz.cif").write_text("data_quartz\n")
    meta = retokenize(real_shards, tmp_path / "lost", "fine_grid", records=[tmp_path / "other/quartz.cif", *cifs[1:]])
    assert meta["counts"]["train"]["structures"] == 2 and sum(meta["retokenized_from"]["not_described"].values()) == 2


def test_random_descriptions_come_in_copies_and_again_the_same(real_shards, real_texts, tmp_path):
    tokenizer, texts, names, found = CIFTokenizer(), list(real_texts.values()), list(real_texts), {}
    for out in ("one", "two"):
        retokenize(real_shards, tmp_path / out, "cif", random_descriptions=3)
        shards = open_shards(tmp_path / out, "train", tokenizer.hash)
        found[out] = [tokenizer.decode(ids) for ids in shards]
        assert shards.ids == [f"{name}~{copy}" for name in names for copy in (1, 2, 3)]
        assert open_shards(tmp_path / out, "val").ids == [f"{name}~1" for name in names]
    assert found["one"] == found["two"] and len(set(found["one"])) >= 7
    assert [text.split("\n")[0] for text in found["one"][::3]] == [text.split("\n")[0] for text in texts]
