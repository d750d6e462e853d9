"""Every structure once an epoch, in an order that (seed, epoch) fixes and any number of processes share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crystallm.train.loader import Conditions, DataConfig, ShardLoader, TokenShards, pack
from crystallm.train.synthetic import write_shards
from tokenizer import CIFTokenizer, Grammar

CONFIG = DataConfig(batch_tokens=400, pool=64)


@pytest.fixture(scope="module")
def tokenizer() -> CIFTokenizer:
    return CIFTokenizer()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: CIFTokenizer) -> TokenShards:
    return TokenShards(write_shards(tmp_path_factory.mktemp("shards"), tokenizer), "train")


def loader(shards: TokenShards, **kwargs) -> ShardLoader:
    """Its batches are lists of arrays."""
    return ShardLoader(shards, list, kwargs.pop("config", CONFIG), kwargs.pop("block_size", 512), **kwargs)


def keys(batches: list[list[np.ndarray]]) -> list[list[bytes]]:
    return [[ids.tobytes() for ids in batch] for batch in batches]


def test_an_epoch_holds_every_structure_once_within_the_budget(shards: TokenShards):
    one = loader(shards)
    for _ in range(2):
        batches = list(one.take(one.n_batches))
        assert Counter(key for batch in keys(batches) for key in batch) == Counter(
            shards[i].tobytes() for i in range(len(shards))
        )
        assert all(len(batch) * max(map(len, batch)) <= CONFIG.batch_tokens for batch in batches)
        places = sum(len(batch) * max(map(len, batch)) for batch in batches)
        assert places < 1.15 * len(shards.tokens)  # little of it is padding
        list(one.take(0))


def test_order_follows_from_seed_and_epoch(shards: TokenShards):
    first, again, other = loader(shards), loader(shards), loader(shards, seed=1)
    n = first.n_batches
    epochs = [keys(list(first.take(n))) for _ in range(2)]
    assert epochs[0] == keys(list(again.take(n)))
    assert epochs[0] != epochs[1] and epochs[0] != keys(list(other.take(n)))


def test_resuming_goes_on_where_it_stopped(shards: TokenShards):
    unbroken, stopped = loader(shards), loader(shards)
    n = unbroken.n_batches + 5
    expected = keys(list(unbroken.take(n)))
    got = keys(list(stopped.take(n - 2)))
    resumed = loader(shards)
    resumed.state = stopped.state
    assert resumed.state == {"epoch": 1, "batch": 3}
    assert got + keys(list(resumed.take(2))) == expected


def test_processes_share_one_order(shards: TokenShards):
    alone = loader(shards)
    ranks = [loader(shards, rank=rank, world=3) for rank in range(3)]
    steps = alone.n_batches // 2  # crosses into the next epoch at three times the speed
    for _ in range(steps):
        together = [keys(list(rank.take(2))) for rank in ranks]
        expected = keys(list(alone.take(6)))
        assert [together[i % 3][i // 3] for i in range(6)] == expected
    assert {tuple(rank.state.items()) for rank in ranks} == {tuple(alone.state.items())}


def test_validation_reads_every_structure_once(shards: TokenShards):
    halves = [list(loader(shards, rank=rank, world=2).once()) for rank in range(2)]
    seen = Counter(key for half in halves for batch in keys(half) for key in batch)
    assert seen == Counter(shards[i].tobytes() for i in range(len(shards)))


def test_what_is_too_long_leaves_and_is_counted(shards: TokenShards):
    limit = int(np.median(shards.lengths))
    short = loader(shards, block_size=limit)
    assert short.too_long == (shards.lengths > limit).sum() > 0
    assert all(len(ids) <= limit for batch in short.once() for ids in batch)
    assert sum(map(len, short.once())) + short.too_long == len(shards)
    by_config = loader(shards, config=replace(CONFIG, max_tokens=limit))
    assert np.array_equal(by_config.indices, short.indices)
    with pytest.raises(ValueError, match="none of 200 structures fits 5 tokens"):
        loader(shards, block_size=5)


def test_a_random_part_is_the_same_part_each_time(shards: TokenShards):
    part, again = loader(shards, max_structures=20), loader(shards, max_structures=20)
    assert sum(map(len, part.once())) == 20
    assert np.array_equal(part.indices, again.indices)
    assert not np.array_equal(part.indices, loader(shards, max_structures=20, seed=1).indices)


def test_a_file_of_ids_chooses_what_is_read(shards: TokenShards, tmp_path: Path):
    names = (shards.folder / "ids_train.txt").read_text().split()
    chosen = tmp_path / "ids.txt"
    chosen.write_text("\n".join([names[7], "of-another-corpus", names[3]]) + "\n")
    one = loader(shards, ids=str(chosen))
    assert [ids.tobytes() for batch in one.once() for ids in batch] == [
        ids.tobytes() for ids in sorted((shards[3], shards[7]), key=len)
    ]
    chosen.write_text("of-another-corpus\n")
    with pytest.raises(ValueError, match="none of its 1 ids is in"):
        loader(shards, ids=str(chosen))


def test_condition_lines_are_drawn_and_true(shards: TokenShards, tokenizer: CIFTokenizer):
    names = ["density_g_per_cm3", "band_gap_ev"]  # they come in the order of the grammar all the same
    conditions = Conditions(shards, tokenizer, names, keep=0.5)
    one = loader(shards, conditions=conditions)
    grammar, gaps = Grammar(tokenizer), shards.property("band_gap_ev")
    by_text = {tokenizer.decode(shards[i]): i for i in range(len(shards))}
    assert len(by_text) == len(shards)
    counts, drawn = Counter(), []
    for batch in one.take(one.n_batches):
        assert len(batch) * max(map(len, batch)) <= CONFIG.batch_tokens
        for ids in batch:
            grammar.states(ids)  # raises where the order is wrong
            head, _, rest = tokenizer.decode(ids).partition("data_")
            gap = gaps[by_text["data_" + rest]]
            lines = dict(line[2:].split() for line in head.splitlines())
            counts.update(lines.keys())
            drawn.append(head)
            if "band_gap_ev" in lines:
                assert float(lines["band_gap_ev"]) == pytest.approx(gap, abs=0.00501)
                assert lines["band_gap_ev"][0] == "+"
            if "density_g_per_cm3" in lines:
                assert float(lines["density_g_per_cm3"]) == pytest.approx(2 * gap, abs=0.00501)
    known = int(np.isfinite(gaps).sum())
    assert known < len(shards)
    for name in names:
        assert abs(counts[name] - known / 2) < 4 * (known / 4) ** 0.5  # four standard deviations
    second = [tokenizer.decode(ids).partition("data_")[0] for batch in one.take(one.n_batches) for ids in batch]
    assert sorted(second) != sorted(drawn)


def test_errors_say_what_is_there(shards: TokenShards, tokenizer: CIFTokenizer, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no test structures in this preparation: .* a larger --test-share"):
        TokenShards(shards.folder, "test")
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no validation structures in this preparation: .* larger --val-share"):
        TokenShards(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"no training structures in this preparation: .* more structures"):
        TokenShards(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TokenShards(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="no property 'volume'; it holds band_gap_ev, density_g_per_cm3"):
        shards.property("volume")
    with pytest.raises(ValueError, match="no property line 'colour'; there are band_gap_ev"):
        Conditions(shards, tokenizer, ["colour"], 0.5)
    with pytest.raises(ValueError, match=r"written with vocabulary 'cif' \(.*prepare the data again"):
        shards.check_vocabulary(CIFTokenizer("crystallm_v1"))
    with pytest.raises(ValueError, match="batch_tokens and pool must be at least 1"):
        replace(CONFIG, pool=0)


def test_packing_by_hand():
    lengths = np.array([1, 2, 3, 3, 4, 9])
    assert [list(batch) for batch in pack(np.arange(6), lengths, budget=8)] == [[0, 1], [2, 3], [4], [5]]
