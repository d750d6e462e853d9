"""An index of known crystals that holds none of them: a hash of each one's formula, space group and Wyckoff positions.

For data that a model may be trained on but that do not travel with it. Coordinates and the cell are not part of the
hash, so it finds what is isopointal with a known crystal, which a matching one always is.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.checks.known import strip_conditions


class KnownFingerprints:
    criterion = "with the same formula, space group and Wyckoff positions"

    def __init__(self, hashes: np.ndarray, ids: np.ndarray):
        """`hashes` (n,) uint64, ascending; `ids` (n,) bytes"""
        self.hashes, self.ids = hashes, ids

    @classmethod
    def from_texts(cls, texts: Iterable[tuple[str, str]]) -> KnownFingerprints:
        """Of (id, canonical text); of those with one fingerprint the first stays."""
        found: dict[int, str] = {}
        for record_id, text in texts:
            found.setdefault(fingerprint(text), record_id)
        hashes = np.array(list(found), dtype=np.uint64)
        order = np.argsort(hashes)
        return cls(hashes[order], np.array([record_id.encode() for record_id in found.values()])[order])

    @classmethod
    def open(cls, path: str | Path) -> KnownFingerprints:
        """ValueError for a file that is no such index."""
        try:
            archive = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile):  # text, nothing, half of one
            archive = None
        if not {"hashes", "ids"}.issubset(getattr(archive, "files", ())):
            raise ValueError(f"{path}: wanted an .npz with hashes and ids, as KnownFingerprints.save writes")
        assert archive is not None
        with archive:
            return cls(archive["hashes"], archive["ids"])

    def save(self, path: str | Path) -> None:
        np.savez_compressed(path, hashes=self.hashes, ids=self.ids)

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, text: str) -> str | None:
        """The id of a known crystal like the one that this canonical text describes."""
        wanted = np.uint64(fingerprint(text))
        row = int(np.searchsorted(self.hashes, wanted))
        return self.ids[row].decode() if row < len(self) and self.hashes[row] == wanted else None


def fingerprint(text: str) -> int:
    """64 bits: two of a hundred thousand crystals agree by accident with a probability of 3e-10."""
    unit = AsymmetricUnit.from_text(strip_conditions(text))
    sites = sorted((site.symbol, site.letter) for site in unit.sites)
    key = repr((unit.reduced_formula, unit.formula_units, unit.space_group_number, sites))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
