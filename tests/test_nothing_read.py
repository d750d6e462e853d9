"""Scripts of which nothing could be done say so, and end with a status that is not 0."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = {
    "predict.py": ["--workers", "0"],
    "explain.py": ["--out", "why"],
    "evaluate_cifs.py": ["--workers", "0"],
    "score_cifs.py": ["--workers", "0"],
    "prepare_data.py": ["--workers", "0", "--out", "data"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_read_is_a_failure(
    script: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/x.cif").write_text("data_x\n")

    def said(path: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [script, path, *SCRIPTS[script]])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(root / "bin" / script), run_name="__main__")
        assert ended.value.code not in (0, None)
        printed = capsys.readouterr()
        return printed.out, f"{printed.err}{ended.value.code}"

    _, error = said("empty")
    assert "empty: no structure file in this folder; wanted .cif" in error
    assert not Path("data").exists() and not Path("why").exists()
    printed, error = said("bad")
    assert "no_cell" in printed and ("none of 1" in error or "no structure was kept" in error)
