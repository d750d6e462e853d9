"""The quick-start notebook runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.multi_process
def test_quickstart_runs(root: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(root / "resources/docs/quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "save the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("finished at step 150" in text for text in printed)
    assert any("no structure can have 1 formula unit of Na3Cl2" in text for text in printed)
    assert any("valid by the rules 'default'" in text for text in printed)
