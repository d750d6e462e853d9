"""Cached decoding against the full forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from crystallm.model.cache import KVCache
from crystallm.model.gpt import GPT

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def states(model: GPT, sequences: list[np.ndarray]) -> list[Tensor]:
    """Hidden states of each sequence alone, (T, C) each."""
    return [model(torch.tensor(ids)[None])[0] for ids in sequences]


def decode_stepwise(model: GPT, ids: Tensor) -> Iterator[Tensor]:
    cache = KVCache(model.config, len(ids))
    for place in range(ids.shape[1]):
        yield model(ids[:, place : place + 1], cache=cache)[:, 0]


@torch.no_grad()
def test_cached_decoding_equals_full_forward(any_gpt: GPT, sequences: list[np.ndarray]):
    length = min(map(len, sequences))
    ids = torch.tensor(np.stack([s[:length] for s in sequences]))
    torch.testing.assert_close(torch.stack(list(decode_stepwise(any_gpt, ids)), dim=1), any_gpt(ids), **CLOSE)


@torch.no_grad()
def test_rows_at_different_positions_take_different_numbers_of_tokens(any_gpt: GPT, sequences: list[np.ndarray]):
    """Every row is fed in portions of random size, several tokens at once or none, until all are read."""
    rng = np.random.default_rng(0)
    whole = states(any_gpt, sequences)
    cache = KVCache(any_gpt.config, len(sequences))
    done = np.zeros(len(sequences), dtype=int)
    got: list[list[Tensor]] = [[] for _ in sequences]
    while (done < [len(s) for s in sequences]).any():
        portion = np.minimum(
            rng.integers(0, 6, len(sequences)), [len(s) - d for s, d in zip(sequences, done, strict=True)]
        )
        width = max(int(portion.max()), 1)
        ids = torch.randint(0, any_gpt.spec.vocab_size, (len(sequences), width))  # padding may be anything
        for row, n in enumerate(portion):
            ids[row, :n] = torch.tensor(sequences[row][done[row] : done[row] + n])
        hidden = any_gpt(ids, cache=cache, n_new=torch.tensor(portion))
        for row, n in enumerate(portion):
            got[row].append(hidden[row, :n])
        done += portion
        assert cache.lengths.tolist() == done.tolist()
    for row, expected in enumerate(whole):
        torch.testing.assert_close(torch.cat(got[row]), expected, **CLOSE)


@torch.no_grad()
def test_a_row_can_be_taken_over_by_another_sequence(tiny_gpt: GPT, sequences: list[np.ndarray]):
    first, second, other = sequences[:3]
    cache = KVCache(tiny_gpt.config, 2, max_len=40)
    tiny_gpt(torch.tensor(np.stack([first[:9], other[:9]])), cache=cache)
    cache.reset(torch.tensor([0]))
    ids = torch.tensor(np.stack([second[:9], other[9:18]]))
    hidden = tiny_gpt(ids, cache=cache)
    torch.testing.assert_close(hidden[0], states(tiny_gpt, [second])[0][:9], **CLOSE)
    torch.testing.assert_close(hidden[1], states(tiny_gpt, [other])[0][9:18], **CLOSE)
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]


@torch.no_grad()
def test_one_read_prompt_serves_many_rows(tiny_gpt: GPT, sequences: list[np.ndarray]):
    whole = states(tiny_gpt, sequences[:2])
    prompts = KVCache(tiny_gpt.config, 2)
    tiny_gpt(torch.tensor(np.stack([s[:12] for s in sequences[:2]])), cache=prompts)

    selected = prompts.select(torch.tensor([1, 0, 1]))
    copied = KVCache(tiny_gpt.config, 4, max_len=40)
    copied.copy_rows(torch.tensor([3, 1]), prompts, torch.tensor([0, 1]))
    assert copied.lengths.tolist() == [0, 12, 0, 12]
    assert selected.batch == 3

    follow = torch.tensor(np.stack([s[12:15] for s in sequences[:2]]))
    hidden = tiny_gpt(follow[[1, 0, 1]], cache=selected)
    for row, source in enumerate([1, 0, 1]):
        torch.testing.assert_close(hidden[row], whole[source][12:15], **CLOSE)
    hidden = tiny_gpt(follow[[0, 1, 0, 0]], cache=copied)
    torch.testing.assert_close(hidden[3], whole[0][12:15], **CLOSE)
    torch.testing.assert_close(hidden[1], whole[1][12:15], **CLOSE)


@torch.no_grad()
def test_a_full_row_is_an_error_and_padding_may_hang_over(tiny_gpt: GPT):
    cache = KVCache(tiny_gpt.config, 2, max_len=4)
    ids = torch.ones(2, 3, dtype=torch.long)
    tiny_gpt(ids, cache=cache)
    with pytest.raises(ValueError, match="row 0: 3 tokens and 3 new ones exceed max_len=4"):
        tiny_gpt(ids, cache=cache)
    tiny_gpt(ids, cache=cache, n_new=torch.tensor([1, 0]))
    assert cache.lengths.tolist() == [4, 3]
    with pytest.raises(ValueError, match=r"max_len must be at most block_size \(=96\), got 97"):
        KVCache(tiny_gpt.config, 1, max_len=97)
