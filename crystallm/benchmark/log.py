"""Runs on test rows are written down: date, commit, command, configuration, figures. A second has to be asked for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from crystallm.resources import project_root
from crystallm.version import __version__

LOG_FILE = "resources/LOG.md"
_MARK = re.compile(r"`csp-test dataset=(\S+) rows=(\S+) model=(\S+) config=(\S+)`")


class LogError(ValueError):
    """A run on test rows that cannot be written down, or was made before."""


@dataclass(frozen=True)
class TestRun:
    """What names a test run in the log."""

    __test__ = False  # for pytest, which takes a class of this name for tests

    dataset: str
    rows_hash: str
    model_hash: str
    config_hash: str

    @property
    def mark(self) -> str:
        short = (self.rows_hash[:12], self.model_hash[:12], self.config_hash[:12])
        return "`csp-test dataset={} rows={} model={} config={}`".format(re.sub(r"\s", "_", self.dataset), *short)


def find_log(path: str | None) -> Path:
    """The file named, else resources/LOG.md of a checkout; LogError where there is neither."""
    if path is not None:
        return Path(path)
    if (project_root() / ".git").exists():
        return project_root() / LOG_FILE
    raise LogError("a run on test rows is written to a log: name the file with --log (this is no checkout)")


def check_first(run: TestRun, log: Path, again: bool) -> None:
    """LogError where the log holds a run of this data set's test rows with this model, unless `again`."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    dataset, model = re.sub(r"\s", "_", run.dataset), run.model_hash[:12]
    earlier = [match[0] for match in _MARK.finditer(text) if (match[1], match[3]) == (dataset, model)]
    if earlier and not again:
        raise LogError(
            f"{log} holds {len(earlier)} test run(s) of {run.dataset} with this model, the first {earlier[0]}. "
            "Test rows are for one run of a fixed configuration; --again makes another, which the log will show"
        )


def append_entry(run: TestRun, log: Path, title: str, lines: list[str]) -> str:
    """Write the entry above the newest one (`## …`), or at the end of a log without entries; returns it."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    parts = [
        f"- {run.mark}, commit {git_state()}, crystallm {__version__}",
        f"- `{command()}`",
        *(f"- {x}" for x in lines),
    ]
    entry = "\n".join([f"## {date.today().isoformat()} · {title}", *parts]) + "\n"
    start = text.find("## ") if text.startswith("## ") else text.find("\n## ") + 1
    if text.startswith("## ") or start > 0:
        text = text[:start] + entry + "\n" + text[start:]
    else:
        text = text + "\n" * bool(text) + entry
    log.parent.mkdir(parents=True, exist_ok=True)
    part = log.with_name(f".{log.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, log)
    return entry


def git_state() -> str:
    """ "1a2b3c4d5e6f, clean tree" of the checkout that runs; says so where there is none."""
    root = project_root()
    if not (root / ".git").exists():
        return "unknown (not a checkout)"

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
        return f"{git('rev-parse', 'HEAD')[:12]}, {f'{len(changed)} files changed' if changed else 'clean tree'}"
    except (OSError, subprocess.CalledProcessError) as err:
        return f"unknown ({err})"


def command() -> str:
    return shlex.join(["python", *sys.argv])
