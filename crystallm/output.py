"""Where results go: what is there already is replaced only if that is asked for, and an input never.

    check_output("scores.csv", inputs=["my_cifs/"])  # before any work is done

ValueError for an output that would cost an input, FileExistsError for one that is there, PermissionError where nothing
may be written. An empty folder is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path


def check_output(path: str | Path, inputs: Iterable[str | Path] = (), overwrite: bool = False) -> None:
    """For a file."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; wanted a file")
    _check_writable(path)
    if path.exists():
        spare_inputs(path, inputs)
        if not overwrite:
            raise FileExistsError(f"{path} exists; --overwrite replaces it, or name another file")


def check_output_folder(
    path: str | Path,
    is_ours: Callable[[Path], bool],
    what: str,
    inputs: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> None:
    """For a folder that is replaced as a whole: one that holds what is not `is_ours` is refused with overwrite, too.

    `what` a message calls ours: "crystals of an earlier run".
    """
    path = Path(path)
    check_is_folder(path)
    _check_writable(path)
    entries = sorted(path.rglob("*")) if path.is_dir() else []
    if not entries:
        return
    spare_inputs(path, inputs)
    if foreign := next((entry for entry in entries if not is_ours(entry)), None):
        name = foreign.relative_to(path)
        raise FileExistsError(f"{path} holds more than {what} ({name}, ...); wanted a new or an empty folder")
    if not overwrite:
        number = sum(not entry.is_dir() for entry in entries)
        raise FileExistsError(f"{path} holds {what} ({number}); --overwrite replaces them, or name another folder")


def check_is_folder(path: str | Path) -> None:
    """ValueError where the path, or what it would lie in, is a file."""
    path = Path(path)
    if file := next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None):
        raise ValueError(f"{file} is a file; wanted a folder")


def _check_writable(path: Path) -> None:
    """A new file is written beside its place and moved there."""
    place = next(one for one in (path.absolute(), *path.absolute().parents) if one.is_dir())
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: no permission in {place}")


def spare_inputs(path: str | Path, inputs: Iterable[str | Path]) -> None:
    """ValueError for a path, there or not, that is an input, holds one or lies in one."""
    path = Path(path)
    for source in map(Path, inputs):
        if not source.exists():
            continue
        if path.exists() and os.path.samefile(path, source):
            raise ValueError(f"{path} is an input; name another output")
        if _lies_in(source, path):
            raise ValueError(f"{path} holds the input {source}; name another output")
        if _lies_in(path, source):
            belongs = "is there already and belongs to" if path.exists() else "would lie in"
            raise ValueError(f"{path} {belongs} the input {source}; name another output")


def _lies_in(path: Path, folder: Path) -> bool:
    if not folder.exists():
        return False
    return any(parent.exists() and os.path.samefile(parent, folder) for parent in path.resolve().parents)
