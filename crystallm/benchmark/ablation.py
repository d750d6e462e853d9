"""Which choices earn their place: train with one thing changed, judge by what the models generate, or predict.

    run_ablation(load_config(AblationConfig, ["config/ablations.yaml"]))

Every row trains for the same CPU time, or as many steps, with each seed, and answers the same compositions; token
losses are printed and do not decide. Training and benchmark are the commands that users run, each in a process of its
own, so a row is what its arguments say. A stopped run goes on where it stopped; a row that fails is named with its
error and the rest go on.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from crystallm.resources import resource_path


@dataclass(frozen=True)
class Row:
    train: tuple[str, ...] = ()  # arguments of bin/train.py, after the base's
    benchmark: tuple[str, ...] = ()  # arguments of the judging benchmark, after the base's
    same_model_as: str | None = None  # this row's models, so that only the benchmark differs


@dataclass(frozen=True)
class AblationConfig:
    out: str
    train: tuple[str, ...]  # arguments of bin/train.py for all rows
    benchmark: tuple[str, ...]  # arguments of the judging benchmark for all rows
    judge: Literal["csp", "properties"] = "csp"  # bin/benchmark_csp.py or bin/benchmark_properties.py
    rows: dict[str, Row] = field(default_factory=dict)  # the first is what the others are compared with
    seeds: tuple[int, ...] = (0, 1)
    only: tuple[str, ...] = ()  # rows to run; none named: all
    minutes: float | None = None  # of CPU time for each training
    steps: int | None = None  # or steps

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("no rows: nothing to compare")
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(f"either minutes or steps end a training, got minutes={self.minutes}, steps={self.steps}")
        named = (*self.only, *(row.same_model_as for row in self.rows.values() if row.same_model_as))
        if unknown := [name for name in named if name not in self.rows]:
            raise ValueError(f"no row {unknown[0]!r}; there are {', '.join(self.rows)}")


def run_ablation(config: AblationConfig) -> str:
    """Run what is missing and return the table, in Markdown; OUT/table.md and OUT/results.json hold it."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for name in config.only or config.rows:
        for seed in config.seeds:
            figures = _run_one(config, name, seed)
            results.setdefault(name, {})[seed] = figures
            print(f"{name}, seed {seed}: {json.dumps(figures)}", flush=True)
    table = ablation_table(results, next(iter(config.rows)))
    out = Path(config.out)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    return table


def _run_one(config: AblationConfig, name: str, seed: int) -> dict[str, Any]:
    row = config.rows[name]
    folder = Path(config.out) / _slug(name) / str(seed)
    model = Path(config.out) / _slug(row.same_model_as or name) / str(seed) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    trained = config.rows[row.same_model_as] if row.same_model_as else row
    if not (model / "done").exists():
        minutes, steps = ("none" if end is None else end for end in (config.minutes, config.steps))
        end = [f"train.max_minutes={minutes}", f"train.max_steps={steps}", "train.clock=cpu", "train.threads=1"]
        arguments = [*config.train, *end, *trained.train, f"train.seed={seed}", f"out={model}"]
        if error := _command("bin/train.py", arguments, model.parent / "train.log"):
            return {"error": error}
        (model / "done").touch()
    arguments = [*config.benchmark, *row.benchmark]
    if config.judge == "csp":
        arguments += ["--model", str(model), "--out", str(folder / "csp"), "--seed", str(seed)]
    else:
        arguments += [str(model), "--json", str(folder / "properties.json")]
    if error := _command(f"bin/benchmark_{config.judge}.py", arguments, folder / f"{config.judge}.log"):
        return {"error": error}
    return _figures(model, folder / "csp") if config.judge == "csp" else _errors(model, folder / "properties.json")


def _command(script: str, arguments: Sequence[str], log: Path) -> str | None:
    """Run it with one thread, its output in a log; the last line of that log if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, str(resource_path(script)), *arguments]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    return f"{script} ended with {done.returncode}: {lines[-1]} (all of it in {log})"


def _figures(model: Path, csp: Path) -> dict[str, Any]:
    results = json.loads((csp / "results.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in log if line["kind"] == "val"][-1]
    scores = results["scores"]["unfiltered"]
    rows = {name: one for name, one in scores.items() if name.startswith("n=")}
    return {
        "steps": last["step"],
        **{name: one["match_rate"] for name, one in rows.items()},
        **{f"RMSE {name}": one["rmse"] for name, one in rows.items()},
        "valid": results["samples"]["valid_by_default_rules"],
        "nats": last["nats_per_structure"],
        "tokens": last["nats_per_structure"] / last["nats_per_token"],
    }


def _errors(model: Path, file: Path) -> dict[str, Any]:
    """Mean absolute errors of a predictor by branch and property"""
    [results] = json.loads(file.read_text(encoding="utf-8"))
    errors = {
        f"{branch} {name}": one["mae"]
        for branch, targets in results["branches"].items()
        for name, one in targets.items()
    }
    log = [json.loads(line) for line in (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    answering = {f"MAE {name}": errors[f"{results['answering']} {name}"] for name in results["coverage"]}
    return {"steps": [line for line in log if line["kind"] == "val"][-1]["step"], **answering, **errors}


class Column(NamedTuple):
    figure: str
    heading: str
    factor: float = 1.0
    decimals: int = 1
    compared: bool = True  # with the base's, seed by seed


def _columns(figures: Mapping[str, Any]) -> list[Column]:
    """Of a table of such figures"""
    if "nats" not in figures:
        names = [name for name in figures if name != "steps"]
        return [
            *(Column(name, name, decimals=4) for name in names),
            Column("steps", "steps", decimals=0, compared=False),
        ]
    rates = [Column(name, f"match rate {name} %", 100) for name in figures if name.startswith("n=")]
    others = [Column("valid", "valid %", 100), Column("nats", "nats per structure")]
    plain = [Column("tokens", "tokens", compared=False), Column("steps", "steps", decimals=0, compared=False)]
    return [*rates, *others, *plain]


def ablation_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]], base: str) -> str:
    """Means over the seeds, the difference from the base's with the seeds' own spread, in Markdown.

    ± is half the range over the seeds of the difference from the base with the same seed.
    """
    columns: list[Column] = []  # of all rows: a row of another kind of model may lack some
    for by_seed in results.values():
        for one in by_seed.values():
            columns += [] if "error" in one else [c for c in _columns(one) if c not in columns]
    columns.sort(key=lambda column: not column.compared)
    heads = ["changed", *(column.heading for column in columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, by_seed in results.items():
        errors = [one["error"] for one in by_seed.values() if "error" in one]
        if errors:
            lines.append(f"| {name} | {errors[0].replace('|', '/')} {'| ' * (len(heads) - 2)}|")
            continue
        reference = None if name == base else results.get(base)
        lines.append(f"| {' | '.join([name, *(_cell(by_seed, reference, column) for column in columns)])} |")
    return "\n".join(lines) + "\n"


def _cell(
    by_seed: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]] | None, column: Column
) -> str:
    name, digits = column.figure, column.decimals
    if any(name not in one for one in by_seed.values()):
        return "–"
    mean = column.factor * float(np.mean([one[name] for one in by_seed.values()]))
    if not column.compared or reference is None or any(name not in one for one in reference.values()):
        return f"{mean:.{digits}f}"
    differences = [column.factor * (one[name] - reference[seed][name]) for seed, one in by_seed.items()]
    spread = (max(differences) - min(differences)) / 2 if len(differences) > 1 else math.nan
    shown = f"{np.mean(differences):+.{digits}f}" + ("" if math.isnan(spread) else f" ± {spread:.{digits}f}")
    return f"{mean:.{digits}f} ({shown})"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
