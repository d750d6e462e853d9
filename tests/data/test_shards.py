import subprocess
import sys

import numpy as np
import pytest

from crystallm.data.shards import ShardError, ShardWriter, open_shards, read_meta, write_meta

META = {"vocabulary": "cif", "vocabulary_hash": "ab" * 32, "counts": {"train": {}, "val": {}}}


@pytest.fixture
def folder(tmp_path):
    chance = np.random.default_rng(0)
    structures = [chance.integers(0, 2**16, size=n) for n in (5, 1, 300, 0, 17)]
    with ShardWriter(tmp_path, "train", ["band_gap_ev", "density_g_per_cm3"]) as writer:
        for k, ids in enumerate(structures):
            writer.add(f"mp-{k}", ids, {"band_gap_ev": 0.1 * k} if k % 2 else {})
    with ShardWriter(tmp_path, "val"):
        pass
    write_meta(tmp_path, META)
    return tmp_path, structures


def test_what_is_written_is_read(folder):
    path, structures = folder
    shards = open_shards(path, "train", "ab" * 32)
    assert len(shards) == 5 and shards.ids == [f"mp-{k}" for k in range(5)]
    for read, written in zip((shards[k] for k in range(5)), structures, strict=True):
        np.testing.assert_array_equal(read, written)
    assert shards.tokens.dtype == np.uint16 and isinstance(shards.tokens, np.memmap)
    np.testing.assert_array_equal(shards[-1], structures[-1])
    np.testing.assert_array_equal(shards.lengths, [5, 1, 300, 0, 17])
    np.testing.assert_allclose(shards.properties["band_gap_ev"], [np.nan, 0.1, np.nan, 0.3, np.nan], rtol=1e-6)
    assert np.isnan(shards.properties["density_g_per_cm3"]).all()
    with pytest.raises(IndexError, match="structure 5 of 5"):
        shards[5]


def test_empty_split(folder):
    shards = open_shards(folder[0], "val")
    assert len(shards) == 0 and len(shards.tokens) == 0 and shards.ids == []


def test_files_are_what_numpy_reads(folder):
    path, structures = folder
    np.testing.assert_array_equal(np.load(path / "tokens_train.npy"), np.concatenate(structures))
    np.testing.assert_array_equal(np.load(path / "offsets_train.npy"), [0, 5, 6, 306, 306, 323])


def test_errors_say_what_is_wrong(folder, tmp_path_factory):
    path, _ = folder
    with pytest.raises(ShardError, match=r"no meta.json; wanted the folder of a finished preparation"):
        read_meta(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ShardError, match="no split 'test'; there are train, val"):
        open_shards(path, "test")
    with pytest.raises(ShardError, match="prepare the data again with this vocabulary"):
        open_shards(path, "train", "cd" * 32)
    np.save(path / "tokens_train.npy", np.zeros(3, np.uint16))
    with pytest.raises(ShardError, match="3 tokens of 'train', but the offsets end at 323"):
        open_shards(path, "train")


def test_an_interrupted_writer_leaves_the_old_files(folder):
    path, structures = folder

    def write_and_fail():
        with ShardWriter(path, "train") as writer:
            writer.add("x", np.arange(4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    np.testing.assert_array_equal(open_shards(path, "train")[2], structures[2])


def test_id_of_two_lines_is_refused(tmp_path):
    with ShardWriter(tmp_path, "train") as writer, pytest.raises(ValueError, match="would not be one line"):
        writer.add("a\nb", np.arange(2))


def test_reading_needs_numpy_only(folder):
    code = f"""
import sys
for name in ("pymatgen", "spglib", "moyopy", "pyarrow", "gemmi", "ase", "torch", "tiktoken"):
    sys.modules[name] = None
from crystallm.data.shards import open_shards
print(len(open_shards({str(folder[0])!r}, "train")))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout == "5\n"
