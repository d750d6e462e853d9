"""Which side a structure is on. The reduced formula alone decides, so that no formula stands on two sides."""

from __future__ import annotations

import hashlib

# What a corpus calls its sides → what they are called here. The names become file names, so no others are taken.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(reduced_formula: str, seed: int = 0, val_share: float = 0.05, test_share: float = 0.0) -> str:
    """ "train", "val" or "test", the same on every machine and whatever else is in the corpus.

    Shares are of the formulas; a formula with many polymorphs carries them all along.
    """
    digest = hashlib.blake2b(f"{seed}:{reduced_formula}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64  # uniform in [0, 1)
    if place < val_share:
        return "val"
    return "test" if place < val_share + test_share else "train"
