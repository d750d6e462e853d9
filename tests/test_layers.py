"""Reads every import of the project: a file may import from lower layers and from its own folder, nothing else.

The layers are those of the README's file map. `crystallm/__init__.py`, lazy, is exempt.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Folder, or file of crystallm/, by layer; what is not named in crystallm/ itself is a file of layer 1.
LAYERS = {
    0: ["tokenizer"],
    1: ["crystallm"],
    1.5: ["crystallm.periodic"],
    2: [f"crystallm.{name}" for name in ("data", "model", "train", "checks", "refine")],
    2.5: ["crystallm.properties"],  # reads texts with a decoder of crystallm.model, if asked to
    3: [f"crystallm.{name}" for name in ("sample", "metrics", "rank")],
    4: [f"crystallm.{name}" for name in ("rl", "report", "benchmark", "speed", "pipeline", "training", "cli")],
    5: ["bin", "config", "resources", "tests", "setup"],
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}
LAZY_NAMES = {  # crystallm/__init__.py hands these on from higher layers
    **dict.fromkeys(("generate", "Generator", "GenerateConfig"), "crystallm.sample"),
    "Predictor": "crystallm.properties",
}

# Third-party packages: the only ones a folder may use, and ones it may not.
ONLY = {
    "tokenizer": {"tiktoken", "numpy"},
    "crystallm.model": {"torch", "numpy", "safetensors"},
    "crystallm.periodic": {"torch", "numpy", "safetensors"},
}
NEVER = {"crystallm": {"torch", "wandb"}, "crystallm.train": {"pymatgen", "spglib", "gemmi", "ase"}}


def unit_of(module: str) -> str | None:
    """`crystallm.data.shards` -> `crystallm.data`; None for what is not ours."""
    parts = module.split(".")
    if parts[0] not in {unit.split(".")[0] for unit in LAYER_OF}:
        return None
    two = ".".join(parts[:2])
    return two if two in LAYER_OF else parts[0]


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file, those inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(root: Path) -> list[str]:
    """One line for each import that goes upward or sideways, and for each folder that has no layer."""
    found = []
    for folder in sorted(p for p in (root / "crystallm").iterdir() if any(p.glob("**/*.py"))):
        if f"crystallm.{folder.name}" not in LAYER_OF:
            found.append(f"crystallm/{folder.name}: this folder has no layer in tests/test_layers.py")
    files = [p for top in ("tokenizer", "crystallm", "bin", "resources") for p in sorted((root / top).rglob("*.py"))]
    for path in files:
        relative = path.relative_to(root)
        if relative.as_posix() == "crystallm/__init__.py" or "_files" in relative.parts:
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        own = unit_of(module)
        assert own is not None, module
        for line, target in imports(path, module):
            name = target.split(".")
            unit = LAZY_NAMES.get(name[1], unit_of(target)) if name[0] == "crystallm" and name[1:] else unit_of(target)
            where = f"{relative.as_posix()}:{line}"
            if unit is None:
                if name[0] in sys.stdlib_module_names or own not in {*ONLY, *NEVER}:
                    continue
                if (own in ONLY and name[0] not in ONLY[own]) or name[0] in NEVER.get(own, ()):
                    found.append(f"{where}: {own} may not use {name[0]}")
            elif target == "crystallm" and LAYER_OF[own] < 5:
                found.append(f"{where}: `import crystallm` reaches every layer; import from the module that is meant")
            elif LAYER_OF[unit] > LAYER_OF[own]:
                found.append(f"{where}: {own} (layer {LAYER_OF[own]}) imports {target} (layer {LAYER_OF[unit]})")
            elif LAYER_OF[unit] == LAYER_OF[own] and unit != own:
                found.append(f"{where}: {own} imports {target}, of the same layer")
    return found


def test_no_import_goes_upward(root: Path) -> None:
    assert violations(root) == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("tokenizer/grammar.py", "from crystallm.crystal import Crystal", "tokenizer (layer 0) imports crystallm"),
        ("tokenizer/grammar.py", "import torch", "tokenizer may not use torch"),
        ("crystallm/crystal.py", "from crystallm.checks.filter import run", "(layer 1) imports crystallm.checks"),
        (
            "crystallm/crystal.py",
            "def f():\n    from .sample import engine",
            "imports crystallm.sample.engine (layer 3)",
        ),
        ("crystallm/crystal.py", "from crystallm import generate", "imports crystallm.generate (layer 3)"),
        ("crystallm/crystal.py", "import torch.nn", "crystallm may not use torch"),
        (
            "crystallm/data/shards.py",
            "from ..model.gpt import GPT",
            "imports crystallm.model.gpt.GPT, of the same layer",
        ),
        ("crystallm/model/gpt.py", "from pymatgen.core import Structure", "crystallm.model may not use pymatgen"),
        ("crystallm/sample/engine.py", "from crystallm import rank", "imports crystallm.rank, of the same layer"),
        ("crystallm/metrics/match.py", "import crystallm", "reaches every layer"),
        ("crystallm/rank.py", "import crystallm.pipeline", "(layer 3) imports crystallm.pipeline (layer 4)"),
        ("crystallm/checks/filter.py", "import bin.train", "(layer 2) imports bin.train (layer 5)"),
        ("crystallm/novel/thing.py", "", "no layer"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    (tmp_path / "crystallm").mkdir(exist_ok=True)
    path.write_text(f"import os\nimport numpy as np\n{line}\n")
    [found] = violations(tmp_path)
    assert message in found
    assert found.startswith(f"{file}:" if line else "crystallm/novel:")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("crystallm/__init__.py", "from crystallm.sample.generate import generate"),
        ("crystallm/crystal.py", "from tokenizer import CIFTokenizer"),
        ("crystallm/crystal.py", "from .geometry import shortest_distances"),
        ("crystallm/crystal.py", "from crystallm import __version__"),
        ("crystallm/data/shards.py", "from crystallm.data.clean import clean"),
        ("crystallm/sample/engine.py", "from ..model.gpt import GPT"),
        ("crystallm/pipeline.py", "from crystallm import generate, rank"),
        ("bin/train.py", "import crystallm"),
    ],
)
def test_a_downward_import_passes(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    (tmp_path / "crystallm").mkdir(exist_ok=True)
    path.write_text(f"{line}\n")
    assert violations(tmp_path) == []
