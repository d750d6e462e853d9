"""Decoding with a cache against full forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.sample.decoder import PackedDecoder
from crystallm.sample.generate import rows_that_fit
from tokenizer import CIFTokenizer

GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True}


class Reader:
    """Feeds sequences to a decoder, some tokens at a time, and compares each state with that of the full pass."""

    def __init__(self, gpt: GPT, sequences: np.ndarray, decoder: PackedDecoder):
        self.sequences, self.decoder = sequences, decoder
        with torch.no_grad():
            self.full = gpt(torch.from_numpy(sequences))  # (n, T, C)
        self.read = np.zeros(len(sequences), dtype=int)  # by row: which differs from the sequence's number after keep()
        self.of_row = np.arange(len(sequences))

    def feed(self, counts: list[int], tolerance: float = 1e-5, every: int = 1) -> None:
        """`every`: ask for the states of every so many tokens only, the last first."""
        rows = np.repeat(np.arange(len(counts)), counts)
        positions = np.concatenate([self.read[row] + np.arange(n) for row, n in enumerate(counts)])
        ids = self.sequences[self.of_row[rows], positions]
        wanted = np.arange(len(rows))[::-every]
        asked = None if every == 1 else wanted.tolist()
        hidden = self.decoder.forward(ids.tolist(), rows.tolist(), positions.tolist(), asked)
        which = np.arange(len(rows)) if every == 1 else wanted
        expected = self.full[self.of_row[rows[which]], positions[which]]
        torch.testing.assert_close(hidden, expected, atol=tolerance, rtol=tolerance)
        self.read += counts


@pytest.fixture(scope="module")
def sequences() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (6, 120))


def test_rows_of_any_length(random_gpt: GPT, sequences: np.ndarray) -> None:
    """Rows pass from pool to pool at 4, 8, 16, ... positions, at different times; 40 tokens at once are many."""
    reader = Reader(random_gpt, sequences, PackedDecoder(random_gpt, 6, n_positions=4))
    for counts in (
        [1, 3, 5, 9, 40, 2],
        [1, 0, 1, 1, 1, 30],
        [0, 20, 0, 3, 0, 1],
        [5, 5, 5, 5, 5, 5],
        [1, 0, 0, 0, 0, 1],
    ):
        reader.feed(counts)
        reader.feed([2, 1, 1, 1, 1, 2], every=3)


def test_the_cache_takes_what_was_reckoned(random_gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where short and long rows stand beside each other, so that there is a pool of each size."""
    capacities, config = (32, 64, 128, 256, 512), random_gpt.config
    n_bytes = 32 * sum(capacities) * 2 * config.n_layer * config.n_embd * 4
    monkeypatch.setattr("crystallm.sample.generate.CACHE_BYTES", n_bytes)
    n_rows = rows_that_fit(random_gpt)
    decoder, ends = PackedDecoder(random_gpt, n_rows), (20, 50, 100, 200, 400)
    rows = np.repeat(np.arange(5), ends)
    positions = np.concatenate([np.arange(end) for end in ends])
    decoder.forward([5] * len(rows), rows.tolist(), positions.tolist())
    assert tuple(sorted(decoder._pools)) == capacities and n_rows == 32
    assert sum(pool.data.nbytes for pool in decoder._pools.values()) == n_bytes


def test_rows_that_end_make_room(random_gpt: GPT, sequences: np.ndarray) -> None:
    reader = Reader(random_gpt, sequences, PackedDecoder(random_gpt, 6, n_positions=4))
    reader.feed([10, 3, 7, 2, 3, 5])
    reader.decoder.forget([0, 3])
    reader.of_row[[0, 3]] = [3, 0]  # others take their place
    reader.read[[0, 3]] = 0
    reader.feed([0, 3, 3, 5, 1, 0])
    reader.feed([6, 1, 0, 0, 2, 2])
    reader.read[[1, 2]] = 0  # begins again without a word
    reader.feed([1, 12, 2, 1, 1, 1])


def test_rows_can_be_kept_twice(random_gpt: GPT, sequences: np.ndarray) -> None:
    reader = Reader(random_gpt, sequences, PackedDecoder(random_gpt, 6, n_positions=4))
    reader.feed([10, 3, 7, 2, 3, 5])
    rows = [5, 0, 0, 1, 5, 3, 0]  # more than there were
    reader.decoder.keep(rows)
    reader.of_row, reader.read = reader.of_row[rows], reader.read[rows]
    reader.feed([1, 2, 3, 4, 5, 6, 7])
    reader.feed([1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("shape", [{}, GPT2, {"qk_norm": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_of_blocks(shape: dict, dtype: torch.dtype, tokenizer: CIFTokenizer, sequences: np.ndarray) -> None:
    """bfloat16 has 8 bits: states of size 1 differ by a few hundredths."""
    torch.manual_seed(0)
    config = GPTConfig(n_layer=3, n_head=2, n_embd=48, block_size=120, number_hidden=8, **shape)
    gpt = GPT(config, token_spec(tokenizer)).eval()
    with torch.no_grad():  # norms of training do not stay at one
        for name, parameter in gpt.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
    reader = Reader(gpt, sequences, PackedDecoder(gpt, 6, dtype=dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    reader.feed([10, 30, 7, 2, 3, 5], tolerance)
    reader.feed([1, 1, 40, 5, 1, 1], tolerance, every=2)


def test_the_model_is_left_as_it_is_and_looked_at_anew(random_gpt: GPT, sequences: np.ndarray) -> None:
    before = {name: p.clone() for name, p in random_gpt.named_parameters()}
    half = PackedDecoder(random_gpt, 1, dtype=torch.bfloat16).forward([5, 6], [0, 0], [0, 1])
    assert half.dtype == torch.float32
    assert all(torch.equal(p, before[name]) for name, p in random_gpt.named_parameters())
    torch.manual_seed(1)
    other = GPT(random_gpt.config, random_gpt.spec).eval()
    first = PackedDecoder(other, 1).forward([5, 6], [0, 0], [0, 1])
    other.load_state_dict(random_gpt.state_dict())
    again = PackedDecoder(other, 1).forward([5, 6], [0, 0], [0, 1])
    assert not torch.allclose(first, again)
    torch.testing.assert_close(again, PackedDecoder(random_gpt, 1).forward([5, 6], [0, 0], [0, 1]))
