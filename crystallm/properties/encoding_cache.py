"""What a frozen encoder said of each text, kept on disk: one SQLite file that several processes read and write."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Halves = NDArray[np.float16]
_KEYS_A_QUERY = 500  # SQLite takes 999 parameters at least


class EncodingCache:
    """Rows of vectors, (n_tokens, width) float16, by key. Nothing is ever changed or removed; delete the file instead.

    Copies and forks open a connection of their own. Raises ValueError for a file that is no such cache.
    """

    def __init__(self, path: str | Path, width: int):
        self.path, self.width = Path(path), width
        self._opened: tuple[int, sqlite3.Connection] | None = None  # process id, connection

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None or self._opened[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=120, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("CREATE TABLE IF NOT EXISTS encodings (key BLOB PRIMARY KEY, vectors BLOB NOT NULL)")
                connection.commit()
            except sqlite3.DatabaseError as err:
                raise ValueError(
                    f"{self.path} cannot be used as a cache of encodings: {err}; name another file"
                ) from err
            self._opened = os.getpid(), connection
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "width": self.width, "_opened": None}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Halves]:
        """Those that are known."""
        wanted, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), _KEYS_A_QUERY):
            some = wanted[start : start + _KEYS_A_QUERY]
            query = f"SELECT key, vectors FROM encodings WHERE key IN ({','.join('?' * len(some))})"
            for key, blob in self._connection().execute(query, some):
                found[key] = np.frombuffer(blob, dtype=np.float16).reshape(-1, self.width)
        return found

    def put(self, rows: Mapping[bytes, Halves]) -> None:
        entries = [(key, np.ascontiguousarray(vectors, dtype=np.float16).tobytes()) for key, vectors in rows.items()]
        with self._connection() as connection:  # one transaction: all of them or, where it fails, none
            connection.executemany("INSERT OR IGNORE INTO encodings VALUES (?, ?)", entries)

    def __len__(self) -> int:
        return int(self._connection().execute("SELECT COUNT(*) FROM encodings").fetchone()[0])
