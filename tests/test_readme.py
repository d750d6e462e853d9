"""The README's tour, command by command, as a newcomer types it; only the trainings are cut short."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

STEPS = "train.max_steps=20"


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def desk(root: Path, tmp_path: Path) -> Path:
    """A folder in which the README's relative paths work, with CIFs of one's own."""
    for name in ("bin", "config", "resources"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "my_cifs").mkdir()
    for row in pq.read_table(root / "resources/demo/demo.parquet").to_pylist():
        if row["prototype"] == "half_heusler":
            (tmp_path / "my_cifs" / f"{row['formula']}.cif").write_text(row["cif"], encoding="utf-8")
    return tmp_path


def test_every_link_leads_somewhere(root: Path) -> None:
    pages = [
        "README.md",
        "resources/demo/README.md",
        *(f"resources/docs/{name}.md" for name in ("guide", "diffusion", "properties", "fusion", "results")),
        *(f"resources/{name}/README.md" for name in ("model", "refiner", "predictor")),
    ]
    for page in (*pages, "tokenizer/README.md"):
        text = (root / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or ((root / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.slow
@pytest.mark.multi_process
def test_the_tour(root: Path, desk: Path) -> None:
    lines = [line for block in blocks(root, "bash")[2:] for line in block.splitlines()]
    assert len(lines) >= 8
    for line in lines:
        name, script, *arguments = shlex.split(line)
        assert name == "python", line
        arguments += [STEPS] if script == "bin/train.py" else []
        done = subprocess.run([sys.executable, script, *arguments], cwd=desk, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        if script == "bin/sample.py":
            assert re.search(r"^kept [1-9]\d* of \d+", done.stdout, re.M), f"{line}\n{done.stdout}"
    assert list((desk / "hematite").glob("*.cif"))


@pytest.mark.slow
def test_the_python_example(root: Path, desk: Path) -> None:
    [code] = blocks(root, "python")
    code += (
        "assert len(records) == 8 and record.structure.composition.reduced_formula == 'NaCl' and len(record.atoms)\n"
    )
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
