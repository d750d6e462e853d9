"""The notebooks run from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def printed_by(path: Path, folder: Path, **parameters: int) -> str:
    """What the notebook prints, run in `folder`, with other values of its cell of parameters."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "save the notebook without outputs"
    if parameters:
        [place] = [k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
        assert all(f"{name} = " in notebook.cells[place].source for name in parameters)
        lines = [f"{name} = {value}" for name, value in parameters.items()]
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.multi_process
def test_quickstart_runs(root: Path, tmp_path: Path) -> None:
    printed = printed_by(root / "resources/docs/quickstart.ipynb", tmp_path)
    assert "finished at step 150" in printed
    assert "no structure can have 1 formula unit of Na3Cl2" in printed
    assert "valid by the rules 'default'" in printed


@pytest.mark.slow
@pytest.mark.multi_process
def test_diffusion_runs(root: Path, tmp_path: Path) -> None:
    printed = printed_by(root / "resources/docs/diffusion.ipynb", tmp_path, EPOCHS=4, STRUCTURES=3)
    assert "finished at step 252" in printed and "in 3 test structures" in printed
    assert "atoms moved by up to" in printed or "atom moved by up to" in printed
    before, after = map(float, re.search(r"off by ([0-9.]+) Å before, ([0-9.]+) Å after", printed).groups())
    assert after < 0.8 * before
    edge = float(re.search(r"a = ([0-9.]+) Å", printed)[1])
    assert 5.5 < edge < 5.85
