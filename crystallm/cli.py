"""The console commands: each runs the script of `bin/` that it is named after, the one place for its arguments."""

from __future__ import annotations

import runpy

from crystallm.resources import resource_path


def _run(script: str) -> None:
    runpy.run_path(str(resource_path(f"bin/{script}")), run_name="__main__")


def train() -> None:
    _run("train.py")


def sample() -> None:
    _run("sample.py")


def evaluate() -> None:
    _run("evaluate_cifs.py")


def refine() -> None:
    _run("refine.py")


def predict() -> None:
    _run("predict.py")


def explain() -> None:
    _run("explain.py")


def diffuse() -> None:
    _run("diffuse.py")


def score() -> None:
    _run("score_cifs.py")


def prepare() -> None:
    _run("prepare_data.py")


def download() -> None:
    _run("download_data.py")
