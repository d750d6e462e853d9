"""A list that may be longer than memory: what was appended last stays, the rest lies packed in a temporary file."""

from __future__ import annotations

import pickle
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Generic, TypeVar

Item = TypeVar("Item")


class SpilledList(Generic[Item]):
    """Append, iterate, count. The file is the system's to delete, also after a kill."""

    def __init__(self, chunk: int = 4096):
        self._chunk = chunk
        self._tail: list[Item] = []
        self._ends: list[int] = []  # of the packed chunks in the file
        self._n_packed = 0
        self._file: IO[bytes] | None = None  # opened with the first full chunk

    def append(self, item: Item) -> None:
        self._tail.append(item)
        if len(self._tail) == self._chunk:
            self._pack()

    def _pack(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the list is gone)
        self._file.seek(0, 2)
        self._file.write(zlib.compress(pickle.dumps(self._tail, pickle.HIGHEST_PROTOCOL), 1))
        self._ends.append(self._file.tell())
        self._n_packed += len(self._tail)
        self._tail = []

    def __len__(self) -> int:
        return self._n_packed + len(self._tail)

    def __iter__(self) -> Iterator[Item]:
        """Several may run at once; what is appended meanwhile may be missing."""
        tail, start = self._tail, 0
        for end in list(self._ends):
            assert self._file is not None
            self._file.seek(start)
            yield from pickle.loads(zlib.decompress(self._file.read(end - start)))
            start = end
        yield from tail
