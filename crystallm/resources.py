"""Where the project's own files are: vocabularies, tables, configs, scripts, the demo corpus, the bundled model."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def project_root() -> Path:
    """The folder that holds bin/, config/ and resources/.

    In a wheel they lie inside the package; in a checkout or an editable install, beside it.
    """
    bundled = PACKAGE / "_files"
    return bundled if bundled.is_dir() else PACKAGE.parent


def own_file(path: str | Path) -> Path:
    """The path as it is; where nothing is there, the project's own file of that name: "config/finetune.yaml"."""
    given = Path(path)
    if given.exists() or given.is_absolute() or given.parts[:1] not in (("config",), ("resources",)):
        return given
    own = project_root() / given
    return own if own.exists() else given


def resource_path(name: str | Path) -> Path:
    """`resource_path("resources/demo/demo.csv")`: a file or folder of this project, wherever it is installed."""
    root = project_root()
    path = root / name
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"resource {str(name)!r} lies outside the project's folder {root}")
    if not path.exists():
        folder = path.parent
        names = [str(Path(name).parent / p.name) for p in folder.iterdir()] if folder.is_dir() else []
        close = get_close_matches(str(name), names, n=1, cutoff=0)
        hint = f"; closest is {close[0]!r}" if close else ""
        raise FileNotFoundError(f"no {str(name)!r} in {root}{hint}")
    return path
