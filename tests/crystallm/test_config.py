"""Configs: values by field type, files and arguments, and errors that name the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from crystallm.config import (
    ConfigError,
    describe,
    from_dict,
    load_config,
    read_yaml,
    save_config,
    settings_from,
    to_dict,
    to_yaml,
)
from crystallm.hub import resolve_checkpoint


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 1e-3
    compile: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    patience: int | None = 3
    wandb: Literal["off", "online"] = "online"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


@dataclass(frozen=True)
class Outer:
    out: Path
    steps: int = 10
    name: str = "none"
    tags: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    train: Inner = field(default_factory=Inner)


def test_values_are_read_by_the_type_of_their_field() -> None:
    config = load_config(
        Outer,
        [
            "out=runs/x=1",
            "steps=1e4",
            "name=none",
            "tags=a,b",
            "weights={x: 2, y: 3e-1}",
            "train.compile=False",
            "train.patience=None",
            "train.betas=[0.8, 1]",
            "train.wandb=off",
        ],
    )
    train = Inner(compile=False, patience=None, betas=(0.8, 1.0), wandb="off")
    assert config == Outer(Path("runs/x=1"), 10_000, "none", ("a", "b"), {"x": 2.0, "y": 0.3}, train)
    assert isinstance(config.steps, int) and isinstance(config.train.betas[1], float)


@pytest.mark.parametrize("written, read", [("true", True), ("no", False), ("0", False), ("on", True)])
def test_bool_words(written: str, read: bool) -> None:
    assert load_config(Outer, ["out=x", f"train.compile={written}"]).train.compile is read


def test_arguments_win_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    # In YAML 1.1 a bare `off` is the bool False; here it is read by the field's type.
    (tmp_path / "a.yaml").write_text("out: a\nsteps: 1\ntrain:\n  wandb: off\n  learning_rate: 1e-2\n")
    (tmp_path / "b.yaml").write_text("steps: 2\ntrain: {patience: null}\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    files = [str(tmp_path / name) for name in ("a.yaml", "b.yaml", "empty.yaml")]
    config = load_config(Outer, ["train.learning_rate=3e-4", *files])
    assert config == Outer(Path("a"), 2, train=Inner(learning_rate=3e-4, patience=None, wandb="off"))


def test_resolved_config_is_plain_and_reads_back(tmp_path: Path) -> None:
    config = Outer(Path("runs/é"), 3, "off", ("1",), {"w": 1e-5}, Inner(patience=None))
    save_config(config, tmp_path / "c.yaml")
    assert load_config(Outer, [str(tmp_path / "c.yaml")]) == config
    assert from_dict(Outer, to_dict(config)) == config
    assert "learning_rate: 0.001" in to_yaml(config)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["out=x", "train.lerning_rate=1"], r"'train.lerning_rate'; the closest is 'train.learning_rate'"),
        (["out=x", "train.lr=1"], r"'train.lr'; the closest is 'train.learning_rate'"),
        (["out=x", "lr=1"], r"'lr'; the closest is 'train.learning_rate'"),
        (["out=x", "train.rate=1"], r"'train.rate'; the closest is 'train.learning_rate'"),
        (["out=x", "tran.compile=true"], r"'tran'; the closest is 'train'"),
        (["out=x", "train.zzz=1"], r"'train.zzz'; the keys of 'train' are learning_rate, compile"),
        (["out=x", "zzz=1"], r"'zzz'; the keys are out, .*train\.…"),
        (["out=x", "learning_rate=1"], r"'learning_rate'; the closest is 'train.learning_rate'"),
        (["out=x", "train.compile=maybe"], r"train.compile: got 'maybe', wanted bool"),
        (["out=x", "steps=1.5"], r"steps: got '1.5', wanted int"),
        (["out=x", "train.wandb=of"], r"train.wandb: got 'of', wanted one of off, online"),
        (["out=x", "train.betas=1"], r"train.betas: got 1 values \['1'\], wanted 2"),
        (["out=x", "train=3"], r"train: got '3', wanted the section's keys"),
        (["out=x", "train.learning_rate=-1"], r"train.learning_rate must be above 0, got -1.0"),
        (["steps=3"], r"no value for out"),
        (["nowhere.yaml"], r"nowhere.yaml: cannot read this config"),
    ],
)
def test_errors_name_key_value_and_what_was_wanted(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, arguments)


@pytest.mark.parametrize("text, message", [("- 1\n", "wanted `key: value` lines, got list"), ("a: [", "not YAML")])
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, [str(tmp_path / "c.yaml")])


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_config(Outer, ["--help"])
    assert stopped.value.code == 0
    assert describe(Outer) in capsys.readouterr().out
    assert "train.wandb = online    off | online" in describe(Outer)
    assert "out (required)    Path" in describe(Outer)


def test_what_a_checkpoint_settles_is_told_and_what_it_does_not_is_taken() -> None:
    base = Inner(learning_rate=2e-3, patience=5, wandb="off")
    asked = Inner(compile=False, patience=7, wandb="off")
    settings, notes = settings_from(base, asked, free=("compile",))
    assert settings == Inner(learning_rate=2e-3, compile=False, patience=5, wandb="off")
    assert notes == ["patience=7 is not taken, the checkpoint has 5"]
    assert settings_from(base, Inner(), ()) == (base, [])


def test_the_projects_own_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_yaml("config/finetune.yaml")["init_from"] == "bundled"
    assert resolve_checkpoint("resources/refiner").is_dir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/finetune.yaml").write_text("out: mine\n")
    assert read_yaml("config/finetune.yaml") == {"out": "mine"}, "a file that is there comes first"
    with pytest.raises(ConfigError, match=r"config/nothing\.yaml: cannot read this config"):
        read_yaml("config/nothing.yaml")
