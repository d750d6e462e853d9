"""Where a model lies: checkpoint folders, and what others share as `hf:org/name` or `hf:org/name@revision`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from crystallm.output import check_output_folder
from crystallm.resources import own_file, resource_path

PREFIX = "hf:"
BUNDLED, BUNDLED_FOLDER = "bundled", "resources/model"
DEFAULT_ENDPOINT = "https://huggingface.co"
# A repository of bin/export_hf.py has the checkpoint in crystallm/; one of bin/export_model.py is a checkpoint.
FIRST = ["crystallm/*", "config.json"]
CHECKPOINT = ["config.json", "*.safetensors", "known.npz"]
MODEL_FILES = ("config.json", "model.safetensors")  # written by every export
EXTRA_FILES = ("known.npz", "token_counts.npz", "README.md", "LICENSE", "loss.png")  # lie beside them
KINDS = ("vocabulary_hash", "refiner", "predictor")  # each in the config.json of one kind of model of ours


def resolve_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder: `path` itself, its best/ or last/, its crystallm/ (bin/export_hf.py); or hf:org/name.

    "bundled" is the model that comes with crystallm; a folder of that name is ./bundled. "resources/refiner" and the
    like are the project's own, unless there are such here. A file, such as CrystaLLM's ckpt.pt, is a checkpoint.
    """
    if str(path) == BUNDLED:
        return resource_path(BUNDLED_FOLDER)
    root = download_model(str(path)) if str(path).startswith(PREFIX) else own_file(path)
    if root.is_file():
        return root
    for folder in (root / "crystallm", root, root / "best", root / "best.old", root / "last", root / "last.old"):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    raise FileNotFoundError(f"{root}: no checkpoint here (config.json beside model.safetensors), nor in best/ or last/")


def check_export(source: str | Path, target: str | Path) -> None:
    """Whether the model `source` may be exported to the folder `target`: a new one, an empty one, an earlier export.

    FileExistsError where it holds anything else: nothing of a user's is written over. Files whose names begin with a
    dot do not count. ValueError where the source itself lies there.
    """
    folder = Path(target)

    def is_ours(file: Path) -> bool:
        name = file.relative_to(folder).parts[0]
        if name.startswith("."):
            return True
        is_known = name in EXTRA_FILES or (name in MODEL_FILES and is_model_config(folder / "config.json"))
        return is_known and file.is_file()

    check_output_folder(folder, is_ours, "files of an exported model", [resolve_checkpoint(source)], overwrite=True)


def is_model_config(path: Path) -> bool:
    """Whether a config.json is that of a model of ours, whichever kind."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and any(kind in info for kind in KINDS)


def download_model(name: str) -> Path:
    """The folder of a shared model's checkpoint, downloaded once and kept in the Hugging Face cache.

    The environment variables of `huggingface_hub` hold: HF_ENDPOINT (a mirror), HF_HOME (the cache), HF_HUB_OFFLINE,
    HF_TOKEN. Without a connection, what was downloaded before is used. Raises ValueError for a name that is none or a
    repository without a model of ours, FileNotFoundError where there is no such repository or no way to reach it.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", name)
    if match is None:
        raise ValueError(
            f"{name!r} names no shared model; wanted hf:organisation/name or hf:organisation/name@revision"
        )
    repository, revision = match.groups()
    folder = _snapshot(name, repository, revision, FIRST)
    if (folder / "crystallm/config.json").is_file():
        return folder / "crystallm"
    if _is_ours(folder / "config.json"):
        return _snapshot(name, repository, revision, CHECKPOINT)
    raise ValueError(
        f"{name} is not a crystallm model: wanted crystallm/config.json, as bin/export_hf.py writes it, or a checkpoint"
    )


def _snapshot(name: str, repository: str, revision: str | None, files: list[str]) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as err:
        raise ImportError(f"{name} needs huggingface_hub: install crystallm with its extra `hf`") from err
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files, endpoint=endpoint))
    except errors.HFValidationError as err:
        raise ValueError(f"{name}: {err}") from err
    except errors.RevisionNotFoundError as err:
        raise FileNotFoundError(f"{name}: the repository at {endpoint} has no revision {revision!r}") from err
    except errors.GatedRepoError as err:
        raise FileNotFoundError(
            f"{name}: access has to be granted at {endpoint}/{repository}, then HF_TOKEN set"
        ) from err
    except errors.RepositoryNotFoundError as err:
        raise FileNotFoundError(
            f"{name}: no repository {repository!r} at {endpoint}; a private one needs HF_TOKEN"
        ) from err
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as err:
        reason = str(err).partition("\n")[0]
        raise FileNotFoundError(
            f"{name}: cannot be reached at {endpoint} and was not downloaded before ({reason})"
        ) from err


def _is_ours(config: Path) -> bool:
    return config.is_file() and "vocabulary_hash" in json.loads(config.read_text(encoding="utf-8"))
