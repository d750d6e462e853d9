"""Training and sampling run where pymatgen, spglib, wandb and the like are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crystallm.data.shards import ShardWriter, write_meta
from tokenizer import CIFTokenizer

BLOCKED = ("pymatgen", "spglib", "moyopy", "wandb", "ase", "gemmi", "smact", "pandas", "pyarrow", "scipy")
PREAMBLE = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {BLOCKED} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
TEXT = """data_NaCl
_crystallm_primitive_formula_units 1
_symmetry_space_group_name_H-M Fm-3m
_cell_length_a {a:.2f}
_cell_length_b {a:.2f}
_cell_length_c {a:.2f}
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


def run_blocked(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PREAMBLE + code], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/train.py on 40 rock salts, in a process that can import none of BLOCKED."""
    folder = tmp_path_factory.mktemp("blocked")
    tokenizer = CIFTokenizer()
    for split, lengths in (("train", range(500, 540)), ("val", range(540, 544))):
        with ShardWriter(folder / "shards", split) as writer:
            for number, length in enumerate(lengths):
                ids = tokenizer.encode_batch([TEXT.format(a=length / 100)])[0]
                writer.add(f"{split}-{number}", ids)
    meta = {"vocabulary": tokenizer.name, "vocabulary_hash": tokenizer.hash, "source": ["test"], "counts": {}}
    write_meta(folder / "shards", meta)
    arguments = ["train.py", str(root / "config/tiny_cpu.yaml"), "data.path=shards", "out=run", "train.max_steps=4"]
    arguments += [
        "train.eval_every=2",
        "train.save_every=2",
        "train.warmup_steps=1",
        "model.n_embd=32",
        "model.n_layer=1",
    ]
    code = f"import runpy; sys.argv = {arguments}; runpy.run_path({str(root / 'bin/train.py')!r}, run_name='__main__')"
    assert "step 4" in run_blocked(code, folder)
    return folder / "run"


def test_the_block_blocks(tmp_path: Path) -> None:
    for name in BLOCKED:
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            run_blocked(f"import {name}", tmp_path)


def test_training_needs_none_of_them(trained: Path) -> None:
    names = {path.name for path in trained.rglob("*") if path.is_file()}
    assert {"model.safetensors", "config.json", "metrics.jsonl"} <= names


def test_sampling_needs_none_of_them(trained: Path, tmp_path: Path) -> None:
    """Drawing, constraints and full CIFs; the checks that follow are pymatgen's and spglib's."""
    code = f"""
import crystallm
records = crystallm.generate("NaCl", num=3, seed=1, rules="none", model={str(trained)!r}, device="cpu")
print(len(records), [r.text.startswith("data_NaCl") for r in records], [r.rejected_by for r in records])
print(all("_atom_site_fract_x" in r.cif for r in records if r.rejected_by is None))
"""
    lines = run_blocked(code, tmp_path).splitlines()
    assert lines[0].startswith("3 [True, True, True]")
    assert lines[1] == "True"
