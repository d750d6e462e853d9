"""The training loop, for anything with `loss(batch)`; it knows neither tokens nor crystals.

A run ends after `max_steps` steps or `max_minutes` of training, whichever comes first, and the learning rate has
decayed by then: a run of any length gives a usable model. Stopped by SIGTERM or killed, the same command goes on.
Where `max_steps` decides, a resumed run repeats the unbroken one step for step; with `max_minutes` the rate follows
the clock, so the course is the same but not the digits.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from crystallm.train.checkpoint import find_checkpoint, read_config, read_tensors, write_checkpoint
from crystallm.train.distribution import Device, Dtype, Processes, autocast, pick_dtype, release_memory
from crystallm.train.metrics import MetricsLog, WandbMode, plot_loss
from crystallm.train.optimizer import (
    MovingAverage,
    OptimizerName,
    Schedule,
    fill_missing_gradients,
    load_optimizer_tensors,
    make_optimizers,
    optimizer_tensors,
    rate_factor,
)


@dataclass(frozen=True)
class TrainConfig:
    max_steps: int | None = 10_000
    max_minutes: float | None = None  # of training, over all resumed parts; the decay follows the clock
    clock: Literal["wall", "cpu"] = "wall"  # cpu: time of this process on its cores, for comparisons on a busy machine
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    final_rate: float = 0.0  # share of the learning rate that is left at the end
    warmup_steps: int = 200
    schedule: Schedule = "cosine"
    decay_share: float = 0.3  # wsd: the last share of the run, in which the rate falls
    weight_decay: float = 0.1  # on matrices only
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0  # largest norm of the gradient; 0: no limit
    accumulation_steps: int = 1  # batches a process adds up before a step
    ema_decay: float = 0.0  # moving average of the weights, evaluated and released in their place; 0: off
    seed: int = 0
    eval_every: int = 500
    save_every: int = 500
    log_every: int = 20
    patience: int | None = None  # stop after so many evaluations without a better one
    patience_on: str | None = None  # by this metric of evaluations, smaller is better; None: the loss
    resume: bool = True  # go on from <out>/last if it is there
    device: Device = "auto"
    dtype: Dtype = "auto"
    compile: bool = False
    threads: int | None = None  # of torch on a CPU; None: as torch chooses
    wandb: WandbMode = "off"
    wandb_project: str = "crystallm"

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("max_steps and max_minutes are both none: nothing would end the run")
        above = ("learning_rate", "eval_every", "save_every", "log_every", "accumulation_steps")
        for name in (*above, "max_steps", "max_minutes", "patience", "threads"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("warmup_steps", "final_rate", "weight_decay", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must be in (0, 1], got {self.decay_share}")


class LossLike(Protocol):
    """Sums over a batch, and what each is to be divided by once all batches of a step are added up."""

    @property
    def total(self) -> Tensor: ...  # (), with gradient
    @property
    def weight(self) -> float: ...  # what the gradient is divided by: structures, or the tokens that were chosen
    @property
    def structures(self) -> int: ...  # in the batch
    @property
    def sums(self) -> Tensor: ...  # (n_parts,)
    @property
    def counts(self) -> Tensor: ...  # (n_parts,)


class Batches(Protocol):
    """Where batches come from, e.g. train.loader.ShardLoader."""

    state: dict[str, int]

    def take(self, n: int) -> Iterator[Any]: ...


Callback = Callable[[nn.Module, int], Mapping[str, float]]  # (model in evaluation mode, step) -> further metrics
StopReason = Literal["finished", "early_stop", "interrupted"]


class Trainer:
    """`model.loss(batch)` gives a LossLike whose parts `model.loss_names` names; the first is the criterion.

    `info` is kept in each checkpoint's config.json; `callbacks` run on the first process at every evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        val_batches: Callable[[], Iterator[Any]],
        config: TrainConfig,
        out: str | Path,
        processes: Processes,
        info: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        self.model, self.batches, self.val_batches = model.to(processes.device), batches, val_batches
        self.config, self.out, self.processes = config, Path(out), processes
        self.info, self.callbacks = dict(info or {}), callbacks
        self.names: tuple[str, ...] = tuple(model.loss_names)  # type: ignore[arg-type]
        self.dtype = pick_dtype(config.dtype, processes.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._parameter_names = {p: name for name, p in model.named_parameters()}
        processes.copy_from_first([p.detach() for p in model.parameters()])
        self.optimizers = make_optimizers(
            model, config.optimizer, config.learning_rate, config.weight_decay, config.betas
        )
        self.ema = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.step = 0
        self.elapsed = 0.0  # seconds of training, evaluations and checkpoints included
        self.best = math.inf
        self.best_watched = math.inf  # of the metric that patience_on names
        self.evals_since_best = 0
        self.val: dict[str, float] = {}
        self._val_step = -1
        self._stop = False
        if config.compile:
            compile_blocks(model)

    # -- the loop

    def fit(self) -> StopReason:
        """Train to the end, or until SIGTERM or Ctrl-C; `<out>/last` then holds where it stands."""
        resumed = self._resume() if self.config.resume else False
        self.log = self._open_log(resumed)
        previous = self._catch_signals()
        self._now = time.process_time if self.config.clock == "cpu" else time.perf_counter
        started = self._now() - self.elapsed
        try:
            reason = self._loop(started)
            self.elapsed = self._now() - started
            if reason != "interrupted" and self._val_step != self.step:
                self._evaluate()
            self.save("last")
            if self.log is not None:
                plot_loss(self.log.path, self.out / "loss.png", self.names[0])
            goes_on = "; the same command goes on from here" if reason == "interrupted" else ""
            self._say(f"{reason} at step {self.step}, best {self.names[0]} {self.best:.3f}{goes_on}")
            return reason
        finally:
            if self.log is not None:
                self.log.close()
            for one, handler in previous.items():
                signal.signal(one, handler)

    def _loop(self, started: float) -> StopReason:
        config, window = self.config, _Window(self.names, self.processes.device)
        while True:
            self.elapsed, stop = self.processes.largest([self._now() - started, float(self._stop)])
            if stop:
                return "interrupted"
            progress = self.progress()
            if progress >= 1:
                return "finished"
            if config.patience is not None and self.evals_since_best >= config.patience:
                return "early_stop"
            rate = config.learning_rate * rate_factor(
                config.schedule, self.step, progress, config.warmup_steps, config.decay_share, config.final_rate
            )
            window.add(*self.train_step(rate))
            self.step += 1
            if self.step % config.log_every == 0:
                self._log_training(window, rate)
                release_memory()
            if self.step % config.eval_every == 0:
                pause = time.perf_counter()
                self._evaluate()
                window.skip(time.perf_counter() - pause)
            if self.step % config.save_every == 0:
                pause = time.perf_counter()
                self.elapsed = self._now() - started
                self.save("last")
                window.skip(time.perf_counter() - pause)

    def progress(self) -> float:
        """Share of the run that is done: of the steps or of the time, whichever is further."""
        steps, minutes = self.config.max_steps, self.config.max_minutes
        by_steps = self.step / steps if steps else 0.0
        by_time = self.elapsed / (60 * minutes) if minutes else 0.0
        return max(by_steps, by_time)

    def train_step(self, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step; returns the parts' sums and counts, the number of structures, all of them over all processes, and
        the gradient's norm."""
        # Any randomness of the model (dropout) follows from the step, so a resumed run repeats it.
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 65_537 + self.processes.rank)
        if not self.model.training:
            self.model.train()
        sums = counts = weight = None
        structures = 0
        for batch in self.batches.take(self.config.accumulation_steps):
            with autocast(self.dtype, self.processes.device):
                loss: LossLike = self.model.loss(batch.to(self.processes.device))  # type: ignore[operator]
            loss.total.backward()
            sums = loss.sums if sums is None else sums + loss.sums
            counts = loss.counts if counts is None else counts + loss.counts
            weight = loss.weight if weight is None else weight + loss.weight
            structures += loss.structures
        assert sums is not None and counts is not None and weight is not None
        fill_missing_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # Gradients of sums add up exactly over batches and processes; only then are they divided.
        # Filled where it is needed: a tensor copied from the host would make the host wait for the GPU at every step.
        weight_sum, n_structures = (torch.full((1,), float(n), device=sums.device) for n in (weight, structures))
        self.processes.sum([*gradients, sums, counts, weight_sum, n_structures])
        scale = weight_sum.clamp(min=1).reciprocal()
        torch._foreach_mul_(gradients, scale[0])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        return sums, counts, n_structures[0], norm

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Validation losses, of the moving average where there is one; keeps `<out>/best`."""
        if self.ema is not None:
            self.ema.swap()
        self.model.eval()
        sums = torch.zeros(len(self.names), dtype=torch.float64)
        counts = torch.zeros_like(sums)
        for batch in self.val_batches():
            with autocast(self.dtype, self.processes.device):
                loss: LossLike = self.model.loss(batch.to(self.processes.device))  # type: ignore[operator]
            sums += loss.sums.double().cpu()
            counts += loss.counts.double().cpu()
        on_device = [t.float().to(self.processes.device) for t in (sums, counts)]
        self.processes.sum(on_device)
        self.val = _means(self.names, *on_device)
        if self.processes.is_first:
            for callback in self.callbacks:
                self.val.update(callback(self.model, self.step))
        if self.ema is not None:
            self.ema.swap()
        self.model.train()
        self._val_step = self.step
        value = self.val[self.names[0]]
        better = value < self.best
        self._watch(value, better)
        if self.log is not None:
            self.log.write(self.step, "val", self.val)
        self._say(f"step {self.step}  validation {self.names[0]} {value:.3f}" + ("  best so far" if better else ""))
        if better:
            self.best = value
            self.save("best")
        self.processes.wait()

    def _watch(self, loss: float, better: bool) -> None:
        """Count the evaluations since the best one, by the loss or by what patience_on names."""
        name = self.config.patience_on
        if name is not None:
            if self.processes.is_first and name not in self.val:
                raise ValueError(f"patience_on={name!r} is not measured here; there are {', '.join(self.val)}")
            # Callbacks run on the first process alone; all have to stop together.
            loss = self.processes.largest([self.val.get(name, -math.inf)])[0]
            better = loss < self.best_watched
            self.best_watched = min(loss, self.best_watched)
        self.evals_since_best = 0 if better else self.evals_since_best + 1

    def _log_training(self, window: _Window, rate: float) -> None:
        values, progress = window.close(), min(1.0, self.progress())
        if not math.isfinite(values[self.names[0]]):
            value = values[self.names[0]]
            raise FloatingPointError(f"step {self.step}: {self.names[0]} is {value}; try a lower learning_rate")
        values |= {"learning_rate": rate, "elapsed_s": self.elapsed, "progress": progress}
        values |= {name: float(value) for name, value in self.batches.state.items()}
        if self.log is not None:
            self.log.write(self.step, "train", values)
        speed = "  ".join(f"{values[key]:.0f} {key}" for key in values if key.endswith("/s"))
        self._say(f"step {self.step}  {100 * progress:.1f} %  {self.names[0]} {values[self.names[0]]:.3f}  {speed}")

    # -- checkpoints

    def save(self, name: Literal["last", "best"]) -> None:
        """Write `<out>/<name>`; what another process is doing does not matter, all hold the same weights."""
        if not self.processes.is_first:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {"model": dict(self.model.named_parameters())}
        if self.ema is not None:
            tensors["ema"] = self.ema.weights
        if name == "last":
            tensors["optimizer"] = optimizer_tensors(self.optimizers, self._parameter_names)
        training = {
            "step": self.step,
            "batches": self.batches.state,
            "elapsed_s": self.elapsed,
            "best": self.best if math.isfinite(self.best) else None,
            "best_watched": self.best_watched if math.isfinite(self.best_watched) else None,
            "evals_since_best": self.evals_since_best,
            "validation": self.val,
            "validation_step": self._val_step,
            "dtype": str(self.dtype).removeprefix("torch."),
            "world": self.processes.world,
        }
        write_checkpoint(self.out / name, tensors, {**self.info, "training": training})

    def _resume(self) -> bool:
        folder = find_checkpoint(self.out / "last")
        if folder is None:
            return False
        saved = read_config(folder)
        _check_same_run(saved, self.info, folder)
        self._load(read_tensors(folder, "model"), folder)
        if self.ema is not None:
            for name, tensor in read_tensors(folder, "ema").items():
                self.ema.weights[name].copy_(tensor)
        load_optimizer_tensors(self.optimizers, self._parameter_names, read_tensors(folder, "optimizer"))
        training = saved["training"]
        self.step, self.elapsed = training["step"], training["elapsed_s"]
        self.best = math.inf if training["best"] is None else training["best"]
        watched = training.get("best_watched")  # runs begun before there was patience_on have none
        self.best_watched = math.inf if watched is None else watched
        self.evals_since_best = training["evals_since_best"]
        self.val, self._val_step = training["validation"], training["validation_step"]
        self.batches.state = training["batches"]
        self._say(f"going on from {folder} at step {self.step}")
        return True

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        for name, parameter in self.model.named_parameters():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise ValueError(f"{folder}: no weights for {name} {tuple(parameter.shape)}; is it another model?")
            parameter.copy_(tensors[name])

    # -- around it

    def _open_log(self, resumed: bool) -> MetricsLog | None:
        if not self.processes.is_first:
            return None
        config = self.config
        return MetricsLog(self.out, self.step if resumed else None, config.wandb, config.wandb_project, self.info)

    def _catch_signals(self) -> dict[int, Any]:
        """SIGTERM and Ctrl-C end the run after the step at hand, a second Ctrl-C at once; returns what was done before.

        Nothing where signals cannot be caught: outside the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}

        def stop(signum: int, frame: FrameType | None) -> None:
            if self._stop and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True

        return {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}

    def _say(self, text: str) -> None:
        if self.processes.is_first:
            print(text, flush=True)


class _Window:
    """What happened since the last line of the log, kept on the device so that a step never waits for it."""

    def __init__(self, names: tuple[str, ...], device: torch.device):
        self.names, self.device = names, device
        self._start()

    def _start(self) -> None:
        self.sums = torch.zeros(len(self.names), device=self.device)
        self.counts = torch.zeros_like(self.sums)
        self.structures, self.norm = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.steps, self.started = 0, time.perf_counter()

    def add(self, sums: Tensor, counts: Tensor, structures: Tensor, norm: Tensor) -> None:
        self.sums += sums
        self.counts += counts
        self.structures += structures
        self.norm += norm
        self.steps += 1

    def skip(self, seconds: float) -> None:
        """Time that is not training's."""
        self.started += seconds

    def close(self) -> dict[str, float]:
        """Mean losses, gradient norm and speeds since the last call."""
        values = _means(self.names, self.sums, self.counts)
        values["gradient_norm"] = float(self.norm) / self.steps
        seconds = time.perf_counter() - self.started
        values["structures/s"] = float(self.structures) / seconds
        for name, count in zip(self.names, self.counts.tolist(), strict=True):
            if name.endswith("_per_token"):  # such a part counts tokens
                values["tokens/s"] = count / seconds
        self._start()
        return values


def _means(names: Sequence[str], sums: Tensor, counts: Tensor) -> dict[str, float]:
    """By name; parts that did not occur are left out."""
    rows = zip(names, sums.tolist(), counts.tolist(), strict=True)
    return {name: total / count for name, total, count in rows if count}


def compile_blocks(model: nn.Module) -> None:
    """torch.compile on each block of the model, for any batch shape: one graph serves all layers."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(dynamic=True)


# What may differ between a run and its resumption without making it another run.
FREE_KEYS = {
    "max_steps",
    "max_minutes",
    "eval_every",
    "save_every",
    "log_every",
    "patience",
    "patience_on",
    "resume",
    "out",
}
FREE_KEYS |= {"device", "dtype", "compile", "threads", "workers", "clock", "wandb", "wandb_project", "init_from"}
FREE_KEYS |= {"cache"}  # where what was read is kept
FREE_KEYS |= {"error_factors"}  # of a predictor's targets: fitted after training


def _check_same_run(saved: Mapping[str, Any], info: Mapping[str, Any], folder: Path) -> None:
    differing = differences(saved, {**info, "training": saved["training"]})
    if differing:
        key, old, new = differing[0]
        raise ValueError(
            f"{folder} is of another run: {key} was {old!r} and is now {new!r}; "
            "choose another out=, or train.resume=false to start anew"
        )


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(key, old, new) of what is not the same in two configs, free keys apart."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [k for k in {**old, **new} if k not in FREE_KEYS and k not in ("training", "provenance")]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{key}.{k}".lstrip("."))]
    are_lists = isinstance(old, (list, tuple)) and isinstance(new, (list, tuple))
    if are_lists and len(old) == len(new):
        return [d for k, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{key}.{k}")]
    return [] if old == new else [(key, old, new)]
