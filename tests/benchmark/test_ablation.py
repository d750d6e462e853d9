"""An ablation trains, benchmarks, goes on where it stopped, and its table is worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crystallm.benchmark import ablation
from crystallm.benchmark.ablation import AblationConfig, Row, ablation_table, run_ablation
from crystallm.config import ConfigError, load_config
from crystallm.resources import resource_path


def figures(n1: float, nats: float) -> dict[str, float]:
    return {"steps": 10, "n=1": n1, "n=20": 0.5, "valid": 1.0, "nats": nats, "tokens": 50.0}


def test_table_by_hand():
    results = {
        "base": {0: figures(0.20, 80.0), 1: figures(0.30, 84.0)},
        "better": {0: figures(0.25, 79.0), 1: figures(0.37, 82.0)},
        "broken": {0: {"error": "bin/train.py ended with 1: a | b"}, 1: figures(0.1, 1.0)},
    }
    assert ablation_table(results, "base").splitlines() == [
        "| changed | match rate n=1 % | match rate n=20 % | valid % | nats per structure | tokens | steps |",
        "|---|---|---|---|---|---|---|",
        "| base | 25.0 | 50.0 | 100.0 | 82.0 | 50.0 | 10 |",
        "| better | 31.0 (+6.0 ± 1.0) | 50.0 (+0.0 ± 0.0) | 100.0 (+0.0 ± 0.0) | 80.5 (-1.5 ± 0.5) | 50.0 | 10 |",
        "| broken | bin/train.py ended with 1: a / b | | | | | |",
    ]


def test_each_row_trains_once_and_a_finished_one_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, list[str]]] = []

    def command(script: str, arguments: list[str], log: Path) -> str | None:
        calls.append((script, list(arguments)))
        if "model.dropout=2" in arguments:
            return "bin/train.py ended with 1: dropout must be in [0, 1), got 2.0"
        if script == "bin/train.py":
            model = Path(next(a for a in arguments if a.startswith("out=")).removeprefix("out="))
            model.mkdir(parents=True)
            line = {"kind": "val", "step": 7, "nats_per_structure": 90.0, "nats_per_token": 1.8}
            (model / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        else:
            out = Path(arguments[arguments.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            hot = "--temperature" in arguments
            scores = {"n=1": {"match_rate": 0.3 if hot else 0.2, "rmse": 0.1}}
            results = {"scores": {"unfiltered": scores}, "samples": {"valid_by_default_rules": 0.9}}
            (out / "results.json").write_text(json.dumps(results))
        return None

    monkeypatch.setattr(ablation, "_command", command)
    config = AblationConfig(
        out=str(tmp_path),
        minutes=1.0,
        train=("data.path=x",),
        benchmark=("--num", "1"),
        rows={
            "base": Row(),
            "hot": Row(same_model_as="base", benchmark=("--temperature", "2")),
            "odd": Row(("model.dropout=2",)),
        },
        seeds=(3,),
    )
    table = run_ablation(config)
    trained = [arguments for script, arguments in calls if script == "bin/train.py"]
    assert len(trained) == 2  # base and odd: hot takes base's model
    assert {"data.path=x", "train.max_minutes=1.0", "train.max_steps=none", "train.clock=cpu"} <= set(trained[0])
    assert {"train.seed=3", f"out={tmp_path}/base/3/model"} <= set(trained[0])
    assert "| base | 20.0 | 90.0 | 90.0 | 50.0 | 7 |" in table
    assert "| hot | 30.0 (+10.0) | 90.0 (+0.0) | 90.0 (+0.0) | 50.0 | 7 |" in table
    assert "| odd | bin/train.py ended with 1: dropout must be in [0, 1), got 2.0 " in table
    calls.clear()
    run_ablation(config)
    trained = [arguments for script, arguments in calls if script == "bin/train.py"]
    assert [arguments[-1] for arguments in trained] == [f"out={tmp_path}/odd/3/model"]  # what failed is tried again


def test_a_failing_command_is_answered_with_its_last_line(tmp_path: Path):
    error = ablation._command("bin/train.py", ["model.dropout=2"], tmp_path / "log")
    assert error is not None and "ended with 1" in error and "dropout" in error


def test_the_config_in_the_repository_is_read():
    config = load_config(AblationConfig, [str(resource_path("config/ablations.yaml")), "minutes=3", "seeds=5"])
    assert (config.minutes, config.seeds) == (3.0, (5,)) and next(iter(config.rows)) == "base"
    assert load_config(AblationConfig, [str(resource_path("config/missing_modality.yaml"))]).steps == 800
    with pytest.raises(ConfigError, match=r"either minutes or steps end a training, got minutes=3\.0, steps=5"):
        load_config(AblationConfig, [str(resource_path("config/ablations.yaml")), "minutes=3", "steps=5"])
    with pytest.raises((ConfigError, ValueError), match="no row 'bass'"):
        load_config(AblationConfig, [str(resource_path("config/ablations.yaml")), "only=bass"])
