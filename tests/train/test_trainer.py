"""The loop, on a model that has nothing to do with language, and on the language model."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.train import distribution
from crystallm.train.checkpoint import find_checkpoint, read_config, read_tensors, write_checkpoint
from crystallm.train.distribution import Processes, pick_device, pick_dtype
from crystallm.train.loader import DataConfig, ShardLoader, TokenShards
from crystallm.train.metrics import read_metrics
from crystallm.train.synthetic import write_shards
from crystallm.train.trainer import TrainConfig, Trainer, _Window
from tokenizer import CIFTokenizer

ALONE = Processes(0, 1, torch.device("cpu"))
FAST = TrainConfig(
    max_steps=20,
    learning_rate=0.05,
    warmup_steps=2,
    eval_every=5,
    save_every=5,
    log_every=1,
    dtype="float32",
    weight_decay=0.0,
)


@dataclass
class Points:
    """A batch: y = 3 x, plus noise."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Points:
        return self


@dataclass
class SquaredError:
    total: Tensor
    weight: int
    structures: int
    sums: Tensor
    counts: Tensor


class Line(nn.Module):
    """The smallest thing with a loss."""

    loss_names = ("error", "bias_part")

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1, 1))
        self.scale = scale

    def loss(self, batch: Points) -> SquaredError:
        error = ((batch.x @ self.slope * self.scale - batch.y) ** 2).sum()
        n = len(batch.x)
        sums = torch.stack([error.detach(), error.detach() * 0])
        return SquaredError(error, n, n, sums, torch.tensor([float(n), 0.0]))


class PointBatches:
    """Batches of different sizes, the next one drawn from its index."""

    def __init__(self) -> None:
        self.state = {"epoch": 0, "batch": 0}

    def take(self, n: int) -> Iterator[Points]:
        for _ in range(n):
            yield self.at(self.state["batch"])
            self.state = {"epoch": 0, "batch": self.state["batch"] + 1}

    @staticmethod
    def at(index: int) -> Points:
        rng = np.random.default_rng(index)
        x = torch.from_numpy(rng.standard_normal((2 + index % 3, 1))).float()
        return Points(x, 3 * x + 0.1 * torch.from_numpy(rng.standard_normal(x.shape)).float())


def line_trainer(out: Path, config: TrainConfig = FAST, model: Line | None = None, **kwargs: Any) -> Trainer:
    val = lambda: iter([PointBatches.at(1000), PointBatches.at(1001)])  # noqa: E731
    return Trainer(model or Line(), PointBatches(), val, config, out, ALONE, **kwargs)


def losses(out: Path, kind: str = "train", name: str = "error") -> list[float]:
    return [row[name] for row in read_metrics(out / "metrics.jsonl") if row["kind"] == kind]


def test_it_trains_anything_with_a_loss(tmp_path: Path):
    trainer = line_trainer(tmp_path, replace(FAST, max_steps=200), info={"what": "a line"})
    assert trainer.fit() == "finished"
    assert float(trainer.model.slope.detach()) == pytest.approx(3, abs=0.1)
    assert len(losses(tmp_path)) == 200 and len(losses(tmp_path, "val")) == 40
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    config = read_config(tmp_path / "last")
    assert config["what"] == "a line" and config["training"]["step"] == 200
    assert not (tmp_path / "best" / "optimizer.safetensors").exists()
    files = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {".json", ".jsonl", ".png", ".safetensors"}  # nothing pickled


def test_accumulated_batches_weigh_what_they_hold(tmp_path: Path):
    """One step over batches of 2 and 3 points is the step over the 5 points."""
    two = line_trainer(tmp_path / "a", replace(FAST, max_steps=1, accumulation_steps=2, grad_clip=0.0))
    two.fit()
    parts = [PointBatches.at(i) for i in range(2)]
    whole = Points(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
    one = line_trainer(tmp_path / "b", replace(FAST, max_steps=1, grad_clip=0.0))
    one.batches.take = lambda n: iter([whole])  # type: ignore[method-assign]
    one.fit()
    saved = [read_tensors(tmp_path / name / "last", "optimizer")["exp_avg.slope"] for name in "ab"]
    torch.testing.assert_close(*saved)
    by_hand = 0.1 * (2 * whole.x * (0 - whole.y)).mean()  # (1 - beta1) * gradient of the mean squared error
    assert float(saved[0]) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_resumed_equals_unbroken(tmp_path: Path, ema_decay: float):
    config = replace(FAST, ema_decay=ema_decay, eval_every=3, save_every=4)
    line_trainer(tmp_path / "a", config).fit()

    stopped = line_trainer(tmp_path / "b", config, callbacks=[_kill_at(9)])
    with pytest.raises(KeyboardInterrupt):  # as a kill would, it leaves the checkpoint of step 8
        stopped.fit()
    assert read_config(tmp_path / "b" / "last")["training"]["step"] == 8
    assert len(losses(tmp_path / "b")) == 9
    assert line_trainer(tmp_path / "b", config).fit() == "finished"

    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a", "val") == losses(tmp_path / "b", "val")
    for name in ("model", "optimizer", *(["ema"] if ema_decay else [])):
        first, second = (read_tensors(tmp_path / run / "last", name) for run in "ab")
        assert all(torch.equal(first[key], second[key]) for key in first), name


def _kill_at(step: int):
    def callback(model: nn.Module, at: int) -> dict[str, float]:
        if at == step:
            raise KeyboardInterrupt
        return {}

    return callback


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(sent: signal.Signals, tmp_path: Path):
    def terminate(model: nn.Module, step: int) -> dict[str, float]:
        if step == 10:
            os.kill(os.getpid(), sent)
        return {}

    before = signal.getsignal(sent)
    line_trainer(tmp_path / "a").fit()
    assert line_trainer(tmp_path / "b", replace(FAST, save_every=100), callbacks=[terminate]).fit() == "interrupted"
    assert signal.getsignal(sent) is before
    assert read_config(tmp_path / "b" / "last")["training"]["step"] == 10
    assert line_trainer(tmp_path / "b").fit() == "finished"
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path):
    def impatient(model: nn.Module, step: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt):
        line_trainer(tmp_path, callbacks=[impatient]).fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_also_runs_outside_the_main_thread(tmp_path: Path):
    thread = threading.Thread(target=line_trainer(tmp_path).fit)
    thread.start()
    thread.join()
    assert len(losses(tmp_path)) == 20


def test_a_run_of_given_minutes_ends_decayed(tmp_path: Path):
    # The clock of CPU time: on a busy machine one step may take the wall clock past the end.
    config = replace(
        FAST, max_steps=None, max_minutes=0.01, clock="cpu", schedule="wsd", decay_share=0.5, warmup_steps=0
    )
    trainer = line_trainer(tmp_path, config)
    assert trainer.fit() == "finished"
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[0]["learning_rate"] == pytest.approx(0.05, rel=0.5)
    assert rows[-1]["progress"] > 0.9 and rows[-1]["learning_rate"] < 0.01
    assert trainer.elapsed >= 0.6
    # More minutes later go on from there.
    again = line_trainer(tmp_path, replace(config, max_minutes=0.02))
    assert again.fit() == "finished" and again.step > trainer.step and again.elapsed >= 1.2


def test_early_stopping_keeps_the_best(tmp_path: Path):
    class Worsening(Line):
        def loss(self, batch: Points) -> SquaredError:
            result = super().loss(batch)
            slope = self.slope.detach()[0, 0]  # it grows, and with it the loss in validation
            return result if self.training else replace(result, sums=result.sums * 0 + 1 + slope)

    trainer = line_trainer(tmp_path, replace(FAST, patience=2, max_steps=100), Worsening())
    assert trainer.fit() == "early_stop" and trainer.step == 15
    assert read_config(tmp_path / "best")["training"]["step"] == 5
    again = line_trainer(tmp_path, replace(FAST, patience=2, max_steps=100), Worsening())
    assert again.fit() == "early_stop" and again.step == 15, "the same command finds it ended"
    more = line_trainer(tmp_path, replace(FAST, patience=3, max_steps=100), Worsening())
    assert more.fit() == "early_stop" and more.step == 20


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        ({"max_steps": 0}, "above 0"), ({"max_steps": -5}, "above 0"), ({"max_minutes": 0.0}, "above 0"),
        ({"patience": 0}, "above 0"), ({"threads": 0}, "above 0"), ({"learning_rate": math.nan}, "above 0"),
        ({"grad_clip": -1.0}, "0 or more"), ({"warmup_steps": -10}, "0 or more"), ({"weight_decay": -0.1}, "0 or more"),
    ],
)  # fmt: skip
def test_settings_that_would_never_end_or_train_backwards_are_refused(wrong: dict[str, float], wanted: str):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must be {wanted}, got {value}"):
        replace(FAST, **wrong)


def test_patience_may_watch_another_metric(tmp_path: Path):
    falling = iter([0.5, 0.2, 0.2, 0.3, 0.1])
    settings = replace(FAST, patience=2, max_steps=100, patience_on="failed")

    def share(model: nn.Module, step: int) -> dict[str, float]:
        return {"failed": next(falling)}

    trainer = line_trainer(tmp_path / "one", settings, callbacks=[share])
    assert trainer.fit() == "early_stop" and trainer.step == 20  # the loss itself went on falling
    assert losses(tmp_path / "one", "val", "failed") == [0.5, 0.2, 0.2, 0.3]
    assert read_config(tmp_path / "one" / "last")["training"]["best_watched"] == 0.2
    assert read_config(tmp_path / "one" / "best")["training"]["step"] == 20  # the best by loss is kept
    with pytest.raises(ValueError, match="patience_on='failed' is not measured here; there are error"):
        line_trainer(tmp_path / "two", settings).fit()


def test_callbacks_see_the_model_that_is_released_and_add_to_the_metrics(tmp_path: Path):
    seen = []

    def validity(model: nn.Module, step: int) -> dict[str, float]:
        seen.append((step, model.training, float(model.slope)))
        return {"valid": 0.5}

    trainer = line_trainer(tmp_path, replace(FAST, ema_decay=0.9), callbacks=[validity])
    trainer.fit()
    assert [s[:2] for s in seen] == [(5, False), (10, False), (15, False), (20, False)]
    assert seen[-1][2] == float(trainer.ema.weights["slope"]) != float(trainer.model.slope.detach())
    assert losses(tmp_path, "val", "valid") == [0.5] * 4
    assert read_config(tmp_path / "last")["training"]["validation"]["valid"] == 0.5


def test_a_diverged_run_stops_and_says_so(tmp_path: Path):
    with pytest.raises(FloatingPointError, match=r"step 1: error is (inf|nan); try a lower learning_rate"):
        line_trainer(tmp_path, model=Line(scale=float("nan"))).fit()


def test_another_run_is_not_continued_by_mistake(tmp_path: Path):
    line_trainer(tmp_path, info={"model": {"width": 3, "list": (1, 2)}}).fit()
    same = line_trainer(tmp_path, replace(FAST, max_steps=25), info={"model": {"width": 3, "list": [1, 2]}})
    same.fit()
    assert same.step == 25
    with pytest.raises(ValueError, match=r"of another run: model\.width was 3 and is now 4; choose another out="):
        line_trainer(tmp_path, info={"model": {"width": 4, "list": [1, 2]}}).fit()
    anew = line_trainer(tmp_path, replace(FAST, resume=False), info={"model": {"width": 4}})
    anew.fit()
    assert anew.step == 20 and len(losses(tmp_path)) == 20


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_checkpoint_is_whole_whenever_the_writing_stops(tmp_path: Path, monkeypatch, moment: str):
    folder = tmp_path / "last"
    write_checkpoint(folder, {"model": {"w": torch.zeros(2)}}, {"version": 1})
    renames: list[Path] = []
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if len(renames) == {"before": 0, "between": 1, "after": 2}[moment]:
            raise KeyboardInterrupt
        renames.append(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    if moment == "after":
        write_checkpoint(folder, {"model": {"w": torch.ones(2)}}, {"version": 2})
    else:
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(folder, {"model": {"w": torch.ones(2)}}, {"version": 2})
    monkeypatch.undo()
    found = find_checkpoint(folder)
    version = 2 if moment == "after" else 1
    assert found is not None and read_config(found)["version"] == version
    assert read_tensors(found, "model")["w"].tolist() == [version - 1] * 2
    write_checkpoint(folder, {"model": {"w": torch.ones(2)}}, {"version": 3})
    assert read_config(folder)["version"] == 3 and sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_metrics_of_a_kill_are_mended(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train", "error": 1.0}\n{"step": 2, "ki')
    assert [row["step"] for row in read_metrics(path)] == [1]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_speeds_count_structures_and_tokens():
    """A loss that is a mean over labels, with more of them than structures, changes nothing"""
    window = _Window(("error_per_structure", "nats_per_token"), torch.device("cpu"))
    for _ in range(2):
        window.add(torch.tensor([6.0, 4.0]), torch.tensor([3.0, 40.0]), torch.tensor(2.0), torch.tensor(1.0))
    values = window.close()
    assert values["error_per_structure"] == 2 and values["gradient_norm"] == 1
    assert values["tokens/s"] / values["structures/s"] == pytest.approx(20)


@pytest.mark.parametrize(
    ("amx", "seconds", "expected"),
    [(True, 0.3, torch.bfloat16), (True, 1.5, torch.float32), (False, 0.3, torch.float32)],
    ids=["AMX", "slow", "none"],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, amx: bool, seconds: float, expected: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(distribution, "_product_seconds", {torch.bfloat16: seconds, torch.float32: 1.0}.get)
    distribution._cpu_multiplies_bf16.cache_clear()
    try:
        assert pick_dtype("auto", torch.device("cpu")) == expected
    finally:
        distribution._cpu_multiplies_bf16.cache_clear()


def test_devices_and_dtypes():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(ValueError, match=r"no device 'cpu:x' here"):
        pick_device("cpu:x")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"no device 'cuda' here, by torch .*; there are auto, cpu"):
            pick_device("cuda")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_steps": None}, "nothing would end the run"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"decay_share": 0.0}, r"decay_share must be in \(0, 1\], got 0.0"),
    ],
)
def test_config_errors(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_language_model_learns_the_synthetic_corpus(tmp_path: Path, dtype: str):
    tokenizer = CIFTokenizer()
    shards = write_shards(tmp_path / "shards", tokenizer, n_train=120, n_val=20)
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, dropout=0.1), token_spec(tokenizer))
    collate = partial(make_batch, spec=model.spec)
    data = DataConfig(batch_tokens=1024)
    loaders = [ShardLoader(TokenShards(shards, split), collate, data, 512) for split in ("train", "val")]
    config = replace(FAST, learning_rate=1e-2, ema_decay=0.9, max_steps=30, eval_every=15, dtype=dtype)
    info = model_info(model.config, tokenizer)
    Trainer(model, loaders[0], loaders[1].once, config, tmp_path / "run", ALONE, info).fit()
    val = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "val"]
    assert val[-1]["nats_per_structure"] < 0.75 * losses(tmp_path / "run", name="nats_per_structure")[0]
    assert {"length", "coordinate", "space_group", "nats_per_token"} <= set(val[-1])

    # The checkpoint gives the likelihoods that the run reported.
    released, _, _ = load_checkpoint(tmp_path / "run" / "last")
    total = sum(float(released.log_likelihood(batch)[0].sum()) for batch in loaders[1].once())
    assert -total / 20 == pytest.approx(val[-1]["nats_per_structure"], rel=1e-5 if dtype == "float32" else 0.02)
    assert json.loads((tmp_path / "run/last/config.json").read_text())["training"]["dtype"] == dtype
