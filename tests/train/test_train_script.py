"""bin/train.py as users run it: killed, stopped, in two processes, and from another model's weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crystallm.model.checkpoint import load_checkpoint
from crystallm.train.checkpoint import read_config
from crystallm.train.metrics import read_metrics
from crystallm.train.synthetic import write_shards
from tokenizer import CIFTokenizer

SMALL = ["model.n_layer=1", "model.n_embd=32", "model.n_head=2", "model.dropout=0.1", "data.batch_tokens=512"]
QUICK = ["train.max_steps=24", "train.eval_every=8", "train.save_every=5", "train.log_every=1", "train.dtype=float32"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), CIFTokenizer(), n_train=60, n_val=20)


def command(root: Path, shards: Path, out: Path, *more: str) -> list[str]:
    config = str(root / "config/tiny_cpu.yaml")
    return [str(root / "bin/train.py"), config, f"data.path={shards}", f"out={out}", *SMALL, *QUICK, *more]


def run(arguments: list[str], torchrun: int = 0) -> str:
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}"] if torchrun else []
    done = subprocess.run([sys.executable, *many, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def curve(out: Path, kind: str = "train") -> list[tuple[int, float]]:
    rows = read_metrics(out / "metrics.jsonl")
    return [(row["step"], row["nats_per_structure"]) for row in rows if row["kind"] == kind]


def start_and_signal(arguments: list[str], out: Path, after_step: int, number: signal.Signals) -> int:
    """Start the run, send the signal once it has logged `after_step`; its exit status."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(step >= after_step for step, _ in curve(out)):
            process.send_signal(number)
            break
        time.sleep(0.01)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.multi_process
def test_killed_and_stopped_runs_go_on_as_if_unbroken(root: Path, shards: Path, tmp_path: Path):
    printed = run(command(root, shards, tmp_path / "a"))
    assert "train: 60 structures" in printed and "too_long: 0" in printed and "finished at step 24" in printed

    arguments = command(root, shards, tmp_path / "b")
    assert start_and_signal(arguments, tmp_path / "b", 7, signal.SIGKILL) == -signal.SIGKILL
    at_kill = read_config(tmp_path / "b" / "last")["training"]["step"]
    assert at_kill >= 5
    assert start_and_signal(arguments, tmp_path / "b", 14, signal.SIGTERM) == 0
    at_stop = read_config(tmp_path / "b" / "last")["training"]["step"]
    assert 14 <= at_stop < 24, "the run was over before the signal came"
    assert f"going on from {tmp_path / 'b' / 'last'} at step {at_stop}" in run(arguments)

    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a", "val") == curve(tmp_path / "b", "val")
    weights = [(tmp_path / name / "last/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.multi_process
def test_two_processes_equal_one_with_the_same_global_batch(root: Path, shards: Path, tmp_path: Path):
    same = ["model.dropout=0", "train.max_steps=12"]
    run(command(root, shards, tmp_path / "one", *same, "train.accumulation_steps=2"))
    run(command(root, shards, tmp_path / "two", *same), torchrun=2)
    for kind in ("train", "val"):
        one, two = curve(tmp_path / "one", kind), curve(tmp_path / "two", kind)
        assert [step for step, _ in one] == [step for step, _ in two]
        assert [loss for _, loss in one] == pytest.approx([loss for _, loss in two], rel=1e-5)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_other_models_weights(root: Path, shards: Path, tmp_path: Path):
    run(command(root, shards, tmp_path / "base", "train.max_steps=60", "train.eval_every=20"))
    tuned = [f"init_from={tmp_path / 'base'}", "model.n_embd=64", "model.dropout=0.2", "train.max_steps=10"]
    printed = run(command(root, shards, tmp_path / "tuned", *tuned, "train.eval_every=5"))
    model, _, info = load_checkpoint(tmp_path / "tuned")
    assert "init_from: model.n_embd=64 is not taken, the checkpoint has 32" in printed
    assert model.config.n_embd == info["run"]["model"]["n_embd"] == 32
    assert model.config.dropout == info["run"]["model"]["dropout"] == 0.2
    assert info["run"]["init_from"] == str(tmp_path / "base")
    assert curve(tmp_path / "tuned")[0][1] < 0.8 * curve(tmp_path / "base")[0][1]


@pytest.mark.slow
def test_fine_tuning_as_the_readme_has_it_starts_from_the_bundled_model(root: Path, shards: Path, tmp_path: Path):
    few = ["train.max_steps=1", "data.max_structures=8", "data.max_val_structures=4", "train.device=cpu"]
    config = str(root / "config/finetune.yaml")
    run([str(root / "bin/train.py"), config, f"data.path={shards}", f"out={tmp_path / 'mine'}", *few])
    bundled, _, bundled_info = load_checkpoint("bundled")
    tuned, _, info = load_checkpoint(tmp_path / "mine", weights="model")
    assert info["provenance"]["init_from"] == bundled_info["model_hash"] and tuned.config == bundled.config
    differences = [(a - b).abs().max().item() for a, b in zip(tuned.parameters(), bundled.parameters(), strict=True)]
    assert 0 < max(differences) < 1e-3  # one step of the warm-up away


@pytest.mark.slow
def test_wandb_offline_needs_no_account(root: Path, shards: Path, tmp_path: Path):
    pytest.importorskip("wandb")
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
    arguments = command(root, shards, tmp_path / "run", "train.wandb=offline", "train.max_steps=3")
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert (tmp_path / "run" / "wandb_id.txt").read_text()


def test_an_unknown_key_stops_the_run(root: Path, shards: Path, tmp_path: Path):
    arguments = command(root, shards, tmp_path, "train.lerning_rate=1")
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode != 0
    assert "no key 'train.lerning_rate'; the closest is 'train.learning_rate'" in done.stderr
