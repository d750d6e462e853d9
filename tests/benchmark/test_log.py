from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from crystallm.benchmark import log
from crystallm.benchmark.log import LogError, TestRun, append_entry, check_first, find_log

RUN = TestRun("mp20", "r" * 64, "m" * 64, "c" * 64)


def test_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, under the heading; date, commit, command, configuration, model and figures are in it."""
    path = tmp_path / "LOG.md"
    path.write_text("# Log\nNewest first.\n\n## 2026-01-01 · Old\n- a line\n", encoding="utf-8")
    monkeypatch.setattr(log.sys, "argv", ["bin/benchmark_csp.py", "--dataset", "mp20", "--where", "a > 1"])
    append_entry(RUN, path, "Test rows of mp20", ["match rate 12.3 %"])
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# Log\nNewest first.\n\n## {date.today()} · Test rows of mp20\n")
    assert text.endswith("\n\n## 2026-01-01 · Old\n- a line\n")
    assert f"`csp-test dataset=mp20 rows={'r' * 12} model={'m' * 12} config={'c' * 12}`, commit " in text
    assert "- `python bin/benchmark_csp.py --dataset mp20 --where 'a > 1'`\n- match rate 12.3 %\n" in text
    assert ("clean tree" in text) or ("files changed" in text) or ("unknown" in text)


def test_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.md"
    append_entry(RUN, path, "first", [])
    append_entry(RUN, path, "second", [])
    headings = [line.split(" · ")[1] for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "##"]
    assert headings == ["second", "first"]


def test_a_second_run_has_to_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.md"
    check_first(RUN, path, again=False)  # no log yet
    append_entry(RUN, path, "first", [])
    another_setting = TestRun(RUN.dataset, RUN.rows_hash, RUN.model_hash, "d" * 64)
    with pytest.raises(LogError, match=r"holds 1 test run\(s\) of mp20 with this model.*--again"):
        check_first(another_setting, path, again=False)
    check_first(another_setting, path, again=True)
    check_first(TestRun(RUN.dataset, RUN.rows_hash, "n" * 64, RUN.config_hash), path, again=False)  # another model
    check_first(TestRun("perov5", RUN.rows_hash, RUN.model_hash, RUN.config_hash), path, again=False)


def test_where_the_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_log("a.md") == Path("a.md")
    monkeypatch.setattr(log, "project_root", lambda: tmp_path)
    with pytest.raises(LogError, match="--log"):
        find_log(None)
    assert "not a checkout" in log.git_state()
    (tmp_path / ".git").mkdir()
    assert find_log(None) == tmp_path / "resources/LOG.md"
