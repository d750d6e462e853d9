"""Token shards: what training reads, as flat arrays that numpy maps into memory.

folder/tokens_train.npy      uint16, all structures one after the other
       offsets_train.npy     int64 (n + 1,): structure i is tokens[offsets[i] : offsets[i + 1]]
       properties_train.npz  float32 (n,) by property name, nan where it is not known
       ids_train.txt         one id a line
       meta.json             vocabulary and its hash, source, counts; written last: with it the shards are whole
"""

from __future__ import annotations

import functools
import json
import os
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

META = "meta.json"
_HEADER_BYTES = 128


class ShardError(ValueError):
    """Shards that are missing, unfinished or of another vocabulary."""


def write_atomically(path: Path, data: bytes) -> None:
    """The file is there whole or not at all, also when the machine stops."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class ShardWriter:
    """Writes one split, structure after structure. Memory grows by 8 bytes and 4 a property for each.

    with ShardWriter(folder, "train", ["band_gap_ev"]) as writer:
        writer.add("mp-149", ids, {"band_gap_ev": 0.61})
    """

    def __init__(self, folder: Path | str, split: str, property_names: Iterable[str] = ()) -> None:
        self.folder, self.split = Path(folder), split
        self.folder.mkdir(parents=True, exist_ok=True)
        self.offsets = array("q", [0])
        self.properties = {name: array("f") for name in property_names}
        self._tokens_path = self._path("tokens", "npy")
        self._tokens_part = self._tokens_path.with_name(f".{self._tokens_path.name}.part")
        self._ids_part = self.folder / f".ids_{split}.txt.part"
        self._tokens = self._tokens_part.open("wb")
        self._tokens.write(b"\0" * _HEADER_BYTES)  # the length is known at the end
        self._ids = self._ids_part.open("w", encoding="utf-8", newline="\n")

    def add(self, record_id: str, ids: np.ndarray, properties: Mapping[str, float] | None = None) -> None:
        """`ids` (n,) uint16: the tokens of one structure."""
        if not record_id.isprintable():
            raise ValueError(f"id {record_id!r} would not be one line of ids_{self.split}.txt")
        self._tokens.write(np.ascontiguousarray(ids, dtype="<u2").tobytes())
        self._ids.write(f"{record_id}\n")
        self.offsets.append(self.offsets[-1] + len(ids))
        for name, values in self.properties.items():
            values.append((properties or {}).get(name, float("nan")))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> dict[str, int]:
        """What meta.json states of this split."""
        return {
            "structures": len(self),
            "tokens": self.offsets[-1],
            "longest": int(np.diff(self.offsets).max(initial=0)),
        }

    def close(self) -> None:
        """Puts the files in their places."""
        n_tokens = self.offsets[-1]
        self._tokens.seek(0)
        self._tokens.write(_npy_header("<u2", n_tokens))
        for file, part, path in (
            (self._tokens, self._tokens_part, self._tokens_path),
            (self._ids, self._ids_part, self._path("ids", "txt")),
        ):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            part.replace(path)
        offsets = np.array(self.offsets, dtype=np.int64)
        with _replacing(self._path("offsets", "npy")) as part:
            np.save(part, offsets)
        with _replacing(self._path("properties", "npz")) as part:
            np.savez(part, **{name: np.array(values, np.float32) for name, values in self.properties.items()})  # type: ignore[arg-type]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._tokens.close()
            self._ids.close()

    def _path(self, what: str, ending: str) -> Path:
        return self.folder / f"{what}_{self.split}.{ending}"


class _replacing:
    """A path to write to, moved into its place when all went well."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(f".part.{path.name}")

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.part.replace(self.path)


def _npy_header(dtype: str, length: int) -> bytes:
    """Format 1.0 of numpy's .npy, padded to a fixed size so that it can be written last."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({length},), }}"
    body = text.ljust(_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("latin1")


def write_meta(folder: Path | str, meta: Mapping[str, Any]) -> None:
    write_atomically(Path(folder) / META, (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode())


def read_meta(folder: Path | str) -> dict[str, Any]:
    path = Path(folder) / META
    if not path.is_file():
        raise ShardError(f"{folder}: no {META}; wanted the folder of a finished preparation")
    meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return meta


@dataclass(frozen=True)
class Shards:
    """One split, mapped into memory. `shards[i]` are the token ids of structure i."""

    folder: Path
    split: str
    tokens: np.ndarray  # (n_tokens,) uint16
    offsets: np.ndarray  # (n + 1,) int64
    properties: dict[str, np.ndarray]  # (n,) float32 each
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)} in {self.split!r}")
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each structure"""
        return np.diff(self.offsets)

    @functools.cached_property
    def ids(self) -> list[str]:
        return (self.folder / f"ids_{self.split}.txt").read_text(encoding="utf-8").split("\n")[:-1]


def open_shards(folder: Path | str, split: str, vocabulary_hash: str | None = None) -> Shards:
    """The shards of one split. `vocabulary_hash`, where given, must be the one they were written with."""
    folder = Path(folder)
    meta = read_meta(folder)
    if vocabulary_hash is not None and meta["vocabulary_hash"] != vocabulary_hash:
        raise ShardError(
            f"{folder}: tokens of vocabulary {meta['vocabulary']!r}, hash {meta['vocabulary_hash'][:12]}…; "
            f"wanted {vocabulary_hash[:12]}…: prepare the data again with this vocabulary"
        )
    if split not in meta["counts"]:
        raise ShardError(f"{folder}: no split {split!r}; there are {', '.join(meta['counts']) or 'none'}")
    offsets = np.load(folder / f"offsets_{split}.npy", mmap_mode="r")
    tokens = np.load(folder / f"tokens_{split}.npy", mmap_mode="r" if offsets[-1] else None)
    if len(tokens) != offsets[-1]:
        raise ShardError(f"{folder}: {len(tokens)} tokens of {split!r}, but the offsets end at {offsets[-1]}")
    with np.load(folder / f"properties_{split}.npz") as archive:
        properties = {name: archive[name] for name in archive.files}
    return Shards(folder, split, tokens, offsets, properties, meta)
