"""Each row of the speed table in small, and its baseline: the same work has the same result."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crystallm.cif import write_cif
from crystallm.crystal import Crystal
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.speed import plain
from crystallm.speed.ceilings import product_operations_per_s, product_shapes
from crystallm.speed.measure import CRYSTALLM, measure_row
from crystallm.speed.rows import ROWS, Sample, SpeedConfig, forward_operations, parse_shape, read_corpus
from crystallm.speed.tables import number, share
from tokenizer import CIFTokenizer

HELIUM = Crystal(np.eye(3) * 3, np.zeros((1, 3)), np.array([2]))
SMALL = SpeedConfig(num=4, rounds=2, steps=1, plain_num=2, batch_tokens=256, model_shape="1,2,32")


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(None, 60)


@pytest.fixture(scope="module")
def few(corpus):
    """Crystals of different kinds and few atoms."""
    order = sorted(range(60), key=lambda k: len(corpus.cifs[k]))[:4]
    return type(corpus)(tuple(corpus.cifs[k] for k in order), tuple(corpus.texts[k] for k in order), 0)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_and_its_baseline_give_the_same(name, few):
    row = measure_row(name, few, SMALL)
    json.dumps(row, allow_nan=False)
    assert row["structures"] > 0 and row["plain_structures"] > 0
    if name in ("train", "loader"):
        assert row["same_as_plain"] is None
    else:
        assert row["structures"] == 4 and row["plain_structures"] == 2
        assert row["same_as_plain"] == row["compared"] == 2
    assert row["structures_per_cpu_second"] > 0 and row["ratio"] > 0 and 0 < row["share_of_ceiling"] < 1.5
    if sys.platform == "linux":
        assert 0 < row["start_mb"] <= row["peak_mb"] * 1.01 and row["end_mb"] > 0
    assert row["crystallm_elsewhere"] == CRYSTALLM.get(name)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("encode", lambda results: [ids[:-1] for ids in results]),
        ("write", lambda results: [write_cif(HELIUM)] * len(results)),
        ("filter", lambda results: [not valid for valid in results]),
        ("sample", lambda results: [[*ids[:-1], 5] for ids in results]),
        ("match", lambda results: [0.5 for _ in results]),
    ],
)
def test_a_baseline_of_other_work_is_seen(name, damage, few, monkeypatch):
    plain_work = ROWS[name].plain
    monkeypatch.setattr(ROWS[name], "plain", lambda self, items: damage(plain_work(self, items)))
    row = measure_row(name, few, SMALL)
    assert row["same_as_plain"] < row["compared"]


def test_greedy_encoding_is_that_of_the_tokenizer(corpus):
    tokenizer = CIFTokenizer()
    greedy = plain.GreedyEncoder(tokenizer.vocabulary)
    for text in corpus.texts:
        assert greedy.encode(text) == tokenizer.encode(text)
    assert greedy.encode("{x}\n") == tokenizer.encode("{x}\n") == [tokenizer.id(character) for character in "{x}\n"]


def test_the_plain_training_loss_is_the_models_own_over_the_whole_vocabulary(corpus):
    tokenizer = CIFTokenizer()
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32), token_spec(tokenizer, "full"))
    sequences = tokenizer.encode_batch(corpus.texts[:5])
    ids, targets = plain.padded_batch(sequences, tokenizer.pad_id)
    batch = make_batch(sequences, model.spec, prompt_lengths=[1] * 5)
    loss = model.loss(batch)
    torch.testing.assert_close(plain.full_softmax_loss(model, ids, targets), loss.total / loss.weight)


def test_a_training_step_lowers_the_loss(corpus):
    tokenizer = CIFTokenizer()
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32), token_spec(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = plain.padded_batch(tokenizer.encode_batch(corpus.texts[:5]), tokenizer.pad_id)
    before = plain.full_softmax_loss(model, *batch).item()
    for _ in range(3):
        plain.train_step(model, optimizer, *batch)
    assert plain.full_softmax_loss(model, *batch).item() < before


def test_plain_rules_reject_what_is_wrong(few):
    filter_row = ROWS["filter"](few, SMALL)
    good = max(filter_row.items, key=len)
    a = next(line for line in good.splitlines() if line.startswith("_cell_length_a")).split()[1]
    squeezed = good.replace(a, f"{float(a) / 4:.8f}")
    number = next(line for line in good.splitlines() if line.startswith("_symmetry_Int")).split()[1]
    other_group = good.replace(f"_symmetry_Int_Tables_number {number}", "_symmetry_Int_Tables_number 16")
    assert plain.is_valid_default(good) and plain.is_valid_crystallm(good)
    assert not plain.is_valid_default(squeezed)
    assert not plain.is_valid_default(other_group) and not plain.is_valid_crystallm(other_group)
    assert filter_row.ours([good, squeezed, other_group]) == [True, False, False]


def test_operations_are_those_of_the_forward_pass():
    """Counted by torch itself, for one sequence without padding; attention there is not halved by the mask."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tokenizer = CIFTokenizer()
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, number_embedding=False)
    model = GPT(config, token_spec(tokenizer)).eval()
    n = 40
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        F.linear(model(torch.arange(n)[None]), model.table()[:1000])
    counted = forward_operations(config, model.n_block_parameters, n, n * 1000)
    triangle = 2 * config.n_layer * config.n_embd * n * (n - 1)  # what lies beyond the mask
    norms = 2 * n * (2 * config.n_layer * config.n_embd)  # their weights are no products
    assert counter.get_total_flops() == counted + triangle - norms


def test_product_shapes_are_the_blocks(corpus):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=64)
    block = GPT(config, token_spec(CIFTokenizer())).blocks[0]
    matrices = sorted(tuple(p.shape[::-1]) for p in block.parameters() if p.ndim == 2)
    assert sorted(product_shapes(config)) == matrices
    assert product_operations_per_s(config, torch.float32) > 1e8


def test_samples_that_do_not_end_ask_for_nothing(few):
    row = Sample(few, SMALL)
    assert row.demand(row.items[0], None).operations == 0


def test_shapes_and_settings_are_checked():
    assert parse_shape("25m") == GPTConfig(n_layer=8, n_head=8, n_embd=512)
    for name, million in (("3m", 3), ("25m", 25), ("100m", 100)):
        config = parse_shape(name)
        products = sum(a * b for a, b in product_shapes(config)) * config.n_layer
        assert products == pytest.approx(million * 1e6, rel=0.12)
    with pytest.raises(ValueError, match="layers,heads,width, got 'big'"):
        SpeedConfig(model_shape="big")
    with pytest.raises(ValueError, match="no row 'nothing'; there are encode"):
        SpeedConfig(rows=("nothing",))
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        SpeedConfig(num=0)


def test_a_corpus_without_crystals_is_refused(tmp_path):
    (tmp_path / "bad.cif").write_text("data_x\n")
    with pytest.raises(ValueError, match="none of its 1 rows has a canonical text"):
        read_corpus(str(tmp_path / "bad.cif"), 5)


def test_rows_that_cannot_be_read_are_counted(tmp_path, root):
    (tmp_path / "a.cif").write_text("data_x\n")
    (tmp_path / "b.cif").write_text((root / "tests/cifs/NaCl.cif").read_text())
    corpus = read_corpus(str(tmp_path), 5)
    assert (len(corpus.texts), corpus.n_left_out) == (1, 1)


def test_numbers_have_three_digits():
    assert [number(x) for x in (147_123.4, 131.26, 98.7654, 0.0737)] == ["147,123", "131", "98.8", "0.0737"]
    assert [share(x) for x in (0.527, 0.0013)] == ["53 %", "0.1 %"]
    assert number(float("nan")) == "nan" and np.isfinite(1)


@pytest.mark.slow
@pytest.mark.multi_process
def test_the_command_measures_rows_in_processes_of_their_own(root, tmp_path):
    command = [sys.executable, str(root / "bin/benchmark_speed.py"), "--num", "5", "--rows", "encode,write"]
    command += ["--plain-num", "2", "--model-shape", "1,2,32", "--out", str(tmp_path / "speed.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    assert list(result["rows"]) == ["encode", "write"]
    assert result["settings"]["corpus"] == "demo" and result["settings"]["n_structures"] == 5
    assert result["hardware"]["cores"] >= 1 and result["versions"]["torch"] == torch.__version__
    assert set(result["ceilings"]) == {
        "cpu float32 products, GFLOP/s",
        "cpu bfloat16 products, GFLOP/s",
        "cpu copy, GB/s",
    }
    assert all(value > 0 for value in result["ceilings"].values())
    lines = done.stdout.splitlines()
    assert lines[0] == "5 structures of demo, per CPU-second" and lines[2].startswith("encode ")
