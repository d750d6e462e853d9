"""What a run says of itself: metrics.jsonl, a picture of the loss, the terminal, and W&B where it is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

WandbMode = Literal["off", "offline", "online"]


class MetricsLog:
    """One JSON object a line in `metrics.jsonl`: {"step": ..., "kind": "train" | "val", ...}.

    A resumed run first drops the lines beyond the step it goes on from, so each step stands there once.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None,
        wandb: WandbMode = "off",
        wandb_project: str = "crystallm",
        config: Mapping[str, Any] | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [] if resume_step is None else [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._run = (
            _start_wandb(folder, wandb, wandb_project, config, resume_step is not None) if wandb != "off" else None
        )

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        row = {"step": step, "kind": kind, **{name: _rounded(value) for name, value in values.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._run is not None:
            self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._file.close()
        if self._run is not None:
            self._run.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _rounded(value: float) -> float | None:
    """JSON has no nan."""
    return float(f"{value:.8g}") if math.isfinite(value) else None


def _start_wandb(folder: Path, mode: WandbMode, project: str, config: Mapping[str, Any] | None, resumed: bool) -> Any:
    import wandb  # takes 0.9 s, and is not there for everybody

    id_file = folder / "wandb_id.txt"  # a resumed run goes on in the same W&B run
    run = wandb.init(
        project=project,
        name=folder.name,
        mode="offline" if mode == "offline" else "online",
        dir=str(folder),
        config=dict(config or {}),
        id=id_file.read_text(encoding="utf-8").strip() if resumed and id_file.is_file() else None,
        resume="allow",
    )
    id_file.write_text(run.id, encoding="utf-8")
    return run


def plot_loss(metrics: Path, picture: Path, name: str) -> None:
    """Training and validation loss against the step, and the validation loss of each part. `name`: the criterion."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # the object, not pyplot: no global state, no display

    rows = read_metrics(metrics)
    train = [row for row in rows if row["kind"] == "train" and row.get(name) is not None]
    val = [row for row in rows if row["kind"] == "val" and row.get(name) is not None]
    if not train and not val:
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in train], [r[name] for r in train], lw=0.8, label="training")
    left.plot([r["step"] for r in val], [r[name] for r in val], "o-", ms=3, label="validation")
    left.set(xlabel="step", ylabel=name.replace("_", " "))
    losses = [r[name] for r in (*train, *val)]
    if min(losses) > 0 and max(losses) > 5 * min(losses):
        left.set_yscale("log")
    left.legend()
    right.set_prop_cycle(color=colormaps["tab20"](range(20)))  # a decoder has more parts than the usual ten colours
    for key in val[-1] if val else ():
        points = [(r["step"], r[key]) for r in val if isinstance(r.get(key), (int, float))]
        if points and key not in ("step", "learning_rate") and not key.startswith("nats_per_") and "/" not in key:
            right.plot(*zip(*points, strict=True), "o-", ms=2, lw=0.8, label=key)
    right.set(xlabel="step", ylabel="validation, mean of each part")
    if val:
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))  # beside the curves, not over them
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
