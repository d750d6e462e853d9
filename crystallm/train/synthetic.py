"""Shards of random canonical texts, grammatical but not crystallographic: for tests and for measuring speed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tokenizer import CIFTokenizer

GROUPS = ("P1", "P-1", "Pnma", "C2/c", "R-3m", "P6_3/mmc", "I4/mmm", "Pm-3m", "Fm-3m", "Fd-3m")
ELEMENTS = ("Na", "Ca", "Ti", "Fe", "Si", "O", "Cl", "F")
HEADER = "loop_\n_atom_site_type_symbol\n_atom_site_Wyckoff_symbol" + "".join(
    f"\n_atom_site_fract_{axis}" for axis in "xyz"
)


def random_text(rng: np.random.Generator, mean_sites: int = 4) -> str:
    """A structure whose cell depends on its group and elements, so that there is something to learn."""
    chosen = sorted(rng.choice(len(ELEMENTS), size=rng.integers(1, 4), replace=False))
    counts = rng.integers(1, 5, size=len(chosen))
    formula = "".join(ELEMENTS[e] + (str(n) if n > 1 else "") for e, n in zip(chosen, counts, strict=True))
    group = int(rng.integers(len(GROUPS)))
    a = 3 + group + 0.1 * sum(chosen) + 0.02 * rng.standard_normal()
    angle = 90.0 if group > 3 else 60 + group
    lines = [
        f"data_{formula}",
        f"_crystallm_primitive_formula_units {rng.integers(1, 5)}",
        f"_symmetry_space_group_name_H-M {GROUPS[group]}",
        *(f"_cell_length_{axis} {a:.2f}" for axis in "abc"),
        *(f"_cell_angle_{name} {angle:.1f}" for name in ("alpha", "beta", "gamma")),
        HEADER,
    ]
    for element in chosen:
        for _ in range(rng.integers(1, mean_sites)):
            x, y, z = (min(0.999, round(float(v), 3)) for v in rng.choice([0, 0.25, 0.333, 0.5, rng.random()], 3))
            lines.append(f"{ELEMENTS[element]} {'abcdef'[rng.integers(6)]} {x:.3f} {y:.3f} {z:.3f}")
    return "\n".join(lines) + "\n"


def write_shards(
    folder: Path, tokenizer: CIFTokenizer, n_train: int = 200, n_val: int = 40, seed: int = 0, mean_sites: int = 4
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, n in (("train", n_train), ("val", n_val)):
        ids = [np.array(tokenizer.encode(random_text(rng, mean_sites)), dtype=np.uint16) for _ in range(n)]
        np.save(folder / f"tokens_{split}.npy", np.concatenate(ids))
        np.save(folder / f"offsets_{split}.npy", np.cumsum([0, *map(len, ids)], dtype=np.int64))
        band_gap = rng.uniform(0, 5, size=n).astype(np.float32)
        band_gap[::4] = np.nan
        np.savez(folder / f"properties_{split}.npz", band_gap_ev=band_gap, density_g_per_cm3=band_gap * 2)
        (folder / f"ids_{split}.txt").write_text("".join(f"{split}-{i}\n" for i in range(n)))
    meta = {"vocabulary": tokenizer.name, "vocabulary_hash": tokenizer.hash, "source": "synthetic"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder
