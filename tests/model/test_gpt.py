"""The model against slow, plain ways of computing the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig, rotate, rotation_tables, soft_cross_entropy
from crystallm.model.tokens import token_spec
from tokenizer import CIFTokenizer, Grammar


def nats_by_hand(model: GPT, ids: np.ndarray, grammar: Grammar) -> list[float]:
    """-log p of each token, one softmax after the other over what the grammar allows; 0 up to and with data_."""
    hidden, table = model(torch.tensor(ids)[None])[0], model.table()
    nats, state, given = [], grammar.start, True
    data = grammar.tokenizer.id("data_")
    for place, token in enumerate(ids.tolist()):
        allowed = grammar.allowed(state)
        if given or len(allowed) == 1:
            nats.append(0.0)
        else:
            log_probs = torch.log_softmax(table[torch.from_numpy(allowed).long()] @ hidden[place - 1], dim=0)
            nats.append(-float(log_probs[list(allowed).index(token)]))
        given = given and token != data
        state = grammar.step(state, token)
    return nats


@torch.no_grad()
def test_loss_equals_one_softmax_after_the_other(any_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]):
    grammar = Grammar(tokenizer)
    by_hand = [nats_by_hand(any_gpt, ids, grammar) for ids in sequences]
    total = sum(map(sum, by_hand))
    batch = make_batch(sequences, any_gpt.spec)
    loss = any_gpt.loss(batch)
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(loss.mean) == pytest.approx(total / len(sequences), rel=1e-5)
    assert loss.weight == sum(sum(n != 0 for n in nats) for nats in by_hand)

    per_structure, per_token = any_gpt.log_likelihood(sequences)
    for row, nats in enumerate(by_hand):
        torch.testing.assert_close(per_token[row, : len(nats)], -torch.tensor(nats), atol=1e-4, rtol=1e-4)
        assert not per_token[row, len(nats) :].any()
    torch.testing.assert_close(per_structure, -torch.tensor([sum(n) for n in by_hand]), atol=1e-3, rtol=1e-5)

    named = dict(zip(any_gpt.loss_names, zip(loss.sums.tolist(), loss.counts.tolist(), strict=True), strict=True))
    assert named["nats_per_structure"] == (pytest.approx(total, rel=1e-5), len(sequences))
    assert named["nats_per_token"][1] == sum(map(len, sequences))
    slots = grammar.slots(sequences[0])
    coordinate = [i for i, s in enumerate(slots) if s >= 0 and grammar.slot_names[s] == "coordinate"]
    one = any_gpt.loss(make_batch(sequences[:1], any_gpt.spec))
    place = any_gpt.loss_names.index("coordinate")
    assert float(one.sums[place]) == pytest.approx(sum(by_hand[0][i] for i in coordinate), rel=1e-4)
    assert int(one.counts[place]) == len(coordinate)


@torch.no_grad()
def test_full_loss_is_the_plain_cross_entropy(gpt_of: Callable[[GPTConfig], GPT], sequences: list[np.ndarray]):
    model = gpt_of(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=96, loss="full"))
    expected = 0.0
    for ids in sequences:
        logits = model(torch.tensor(ids)[None])[0] @ model.table().T
        expected += float(F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum"))
    loss = model.loss(make_batch(sequences, model.spec))
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert model.loss_names[-1] == "forced" and loss.counts[-1] > 0


@torch.no_grad()
def test_probabilities_of_a_slot_add_up_to_one(tiny_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]):
    spec, ids = tiny_gpt.spec, sequences[0]
    place = int(np.flatnonzero(Grammar(tokenizer).slots(ids) == spec.slot_names.index("space_group"))[0])
    variants = []
    for token in tokenizer.vocabulary.classes["space_group"]:
        variants.append(ids.copy())
        variants[-1][place] = token
    _, per_token = tiny_gpt.log_likelihood(variants)
    assert float(per_token[:, place].exp().sum()) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_conditions_and_prompts_cost_nothing(tiny_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]):
    ids = sequences[0]
    conditions = np.array(tokenizer.encode("# band_gap_ev +1.10\n# density_g_per_cm3 +4.00\n"))
    _, alone = tiny_gpt.log_likelihood([ids])
    _, with_lines = tiny_gpt.log_likelihood([np.concatenate([conditions, ids])])
    assert not with_lines[0, : len(conditions) + 1].any()
    assert (with_lines[0, len(conditions) + 1 :] != 0).sum() == (alone[0, 1:] != 0).sum()
    assert (with_lines[0, len(conditions) + 1 :] - alone[0, 1:]).abs().max() > 1e-3  # but the model sees them

    total, per_token = tiny_gpt.log_likelihood([ids], prompt_lengths=[10])
    assert not per_token[0, :10].any()
    torch.testing.assert_close(total[0], alone[0, 10:].sum())


@torch.no_grad()
def test_an_unfinished_structure_has_a_likelihood(tiny_gpt: GPT, sequences: list[np.ndarray]):
    whole, part = sequences[0], sequences[0][:12]
    _, of_whole = tiny_gpt.log_likelihood([whole])
    _, of_both = tiny_gpt.log_likelihood([part, whole])
    torch.testing.assert_close(of_both[0, :12], of_whole[0, :12], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_later_tokens_change_nothing_before_them(any_gpt: GPT, sequences: list[np.ndarray]):
    ids = torch.tensor(sequences[0])[None]
    changed = ids.clone()
    changed[0, 20:] = ids[0, 20:].flip(0)
    torch.testing.assert_close(any_gpt(ids)[:, :20], any_gpt(changed)[:, :20])
    assert (any_gpt(ids)[:, 20:] - any_gpt(changed)[:, 20:]).abs().max() > 0.1


def test_rotary_products_depend_on_distances_only():
    cos, sin = rotation_tables(40, 16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))

    def product(m: int, n: int) -> torch.Tensor:
        return rotate(q, cos[m], sin[m]) @ rotate(k, cos[n], sin[n])

    torch.testing.assert_close(product(9, 4), product(32, 27))
    assert (product(9, 4) - product(9, 5)).abs() > 1e-3


@pytest.mark.parametrize("circular", [True, False])
def test_soft_targets_by_hand(circular: bool):
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    targets, width = torch.tensor([0, 5]), 0.5
    log_probs = logits.log_softmax(-1)
    for row, target in enumerate(targets.tolist()):
        expected, norm = 0.0, 0.0
        for offset in (-2, -1, 0, 1, 2):
            place = target + offset
            if circular or 0 <= place < 10:
                weight = np.exp(-0.5 * (offset / width) ** 2)
                expected, norm = expected - weight * float(log_probs[row, place % 10]), norm + weight
        got = soft_cross_entropy(logits, targets, width, circular)[row]
        assert float(got) == pytest.approx(expected / norm, rel=1e-5)
    hard = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets, 1e-3, circular), hard)


def test_soft_targets_change_what_is_minimised_not_what_is_reported(
    gpt_of: Callable[[GPTConfig], GPT], tiny_gpt: GPT, sequences: list[np.ndarray]
):
    soft = gpt_of(replace(tiny_gpt.config, soft_coordinate=2.0))
    batch = make_batch(sequences, soft.spec)
    assert float(soft.train().loss(batch).total.detach()) != pytest.approx(
        float(tiny_gpt.loss(batch).total.detach()), rel=1e-4
    )
    torch.testing.assert_close(soft.loss(batch).sums, tiny_gpt.loss(batch).sums)
    torch.testing.assert_close(soft.eval().loss(batch).total, tiny_gpt.loss(batch).total)


@torch.no_grad()
def test_slot_weights_by_hand(gpt_of: Callable[[GPTConfig], GPT], sequences: list[np.ndarray]):
    torch.manual_seed(0)
    plain = gpt_of(GPTConfig(n_layer=1, n_head=2, n_embd=32))
    weighted = gpt_of(replace(plain.config, slot_weights={"wyckoff": 3.0, "length": 0.5}))
    weighted.load_state_dict(plain.state_dict())
    batch = make_batch(sequences, plain.spec)
    one, other = plain.loss(batch), weighted.loss(batch)
    nats = dict(zip(plain.loss_names, one.sums.tolist(), strict=True))
    assert float(other.total) == pytest.approx(float(one.total) + 2 * nats["wyckoff"] - 0.5 * nats["length"], rel=1e-5)
    torch.testing.assert_close(other.sums, one.sums)
    torch.testing.assert_close(weighted.log_likelihood(sequences)[0], plain.log_likelihood(sequences)[0])
    with pytest.raises(ValueError, match="no slot 'wyckof'; there are start"):
        gpt_of(replace(plain.config, slot_weights={"wyckof": 3.0}))


def test_it_learns(gpt_of: Callable[[GPTConfig], GPT], tokenizer: CIFTokenizer, sequences: list[np.ndarray]):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=96), token_spec(tokenizer)).train()
    batch = make_batch(sequences[:2], model.spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = float(model.loss(batch).mean.detach())
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch).mean.backward()
        optimizer.step()
    assert float(model.loss(batch).mean.detach()) < 0.1 * first


def test_table_is_kept_until_the_weights_may_change(tiny_gpt: GPT):
    with torch.no_grad():
        assert tiny_gpt.table() is tiny_gpt.table()
        before = tiny_gpt.table()
        tiny_gpt.train()
        tiny_gpt.embedding.plain.mul_(2)
        tiny_gpt.eval()
        assert (tiny_gpt.table() - before).abs().max() > 0.1
    assert tiny_gpt.table().requires_grad
    assert tiny_gpt.table().shape == (tiny_gpt.spec.vocab_size, tiny_gpt.config.n_embd)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_embd": 30, "n_head": 4}, r"n_embd must be divisible by n_head \(=4\), got 30"),
        ({"n_embd": 12, "n_head": 4}, "need an even head width, got 3"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_config_errors(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**changes)


def test_too_long_and_misplaced_tokens_are_errors(tiny_gpt: GPT, sequences: list[np.ndarray]):
    with pytest.raises(ValueError, match="97 tokens exceed block_size=96"):
        tiny_gpt(torch.zeros(1, 97, dtype=torch.long))
    with pytest.raises(ValueError, match="position 1"):
        make_batch([np.concatenate([sequences[0][:1], sequences[0]])], tiny_gpt.spec)
    with pytest.raises(ValueError, match="at least one sequence"):
        make_batch([], tiny_gpt.spec)


def test_model_and_training_run_without_the_crystal_libraries(root: Path):
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pymatgen", "spglib", "wandb", "gemmi", "ase", "pandas", "pyarrow", "smact"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import numpy as np, torch
from crystallm.model import batch, checkpoint, gpt, tokens
from crystallm.train import checkpoint, distribution, loader, metrics, optimizer, synthetic, trainer
from tokenizer import CIFTokenizer
tokenizer = CIFTokenizer()
model = gpt.GPT(gpt.GPTConfig(n_layer=1, n_head=2, n_embd=32), tokens.token_spec(tokenizer))
ids = [np.array(tokenizer.encode(synthetic.random_text(np.random.default_rng(0))))]
model.loss(batch.make_batch(ids, model.spec)).total.backward()
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "ran\n", done.stderr
