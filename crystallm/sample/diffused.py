"""Crystals from noise, alone: drawn, checked, told in a line each and a table for all, and written to a folder."""

from __future__ import annotations

import collections
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np

from crystallm.checks.filter import FilterConfig, filter_records
from crystallm.cif_write import write_cif
from crystallm.crystal import Crystal, Ints, lattice_from_parameters
from crystallm.geometry import coordination_numbers, distance_violations, shortest_distance
from crystallm.records import CIFRecord, write_records
from crystallm.refine.batch import ATOMS_AT_ONCE
from crystallm.refine.candidates import sample_best
from crystallm.refine.compositions import MAX_KEPT, TrainingCells
from crystallm.refine.diffusion import CrystalDiffusionModel, Sampler
from crystallm.refine.loader import packed_crystals
from crystallm.sample.formulas import PromptError, parse_formula
from crystallm.train.loader import TokenShards
from crystallm.version import __version__
from tokenizer import CIFTokenizer
from tokenizer.elements import ATOMIC_NUMBERS

CANDIDATES = 8  # in a given cell: most are drawn in smaller ones, so they take 4 to 5 times as long as one
NAME = "generated_structure"
MAX_SHOWN = 50  # verdicts printed


@dataclass(frozen=True)
class DiffuseConfig:
    """Raises ValueError, which says what was wrong and what is wanted."""

    species: tuple[str, ...] | None = None  # of each atom in the cell; None: of training crystals drawn at random
    cell: tuple[float, ...] | None = None  # a, b, c (Å), alpha, beta, gamma (°), or a of a cube; None: generated too
    num: int = 1
    num_steps: int | None = None  # None: all of the model's schedule
    sampler: Sampler = "ancestral"
    corrector_steps: int | None = None  # of predictor_corrector at each step; more are a slower annealing; None: 1
    seed: int | None = None  # None: a fresh one
    # Structures drawn for each, in a given cell with translations within it, of which the best known is kept; 0: one,
    # in the cell as it is. None: CANDIDATES where species and a cell are given, else 0.
    candidates: int | None = None
    rules: str = "default"  # checks: default | crystallm | cdvae

    def __post_init__(self) -> None:
        if self.species is not None and not self.species:
            raise ValueError("species names each atom in the cell, like Na Cl; got none")
        for symbol in self.species or ():
            if symbol not in ATOMIC_NUMBERS:
                raise ValueError(f"species are element symbols, one for each atom, like Na Cl; got {symbol!r}")
        if self.cell is not None and len(self.cell) not in (1, 6):
            raise ValueError(f"a cell is a b c alpha beta gamma, or a of a cube; got {len(self.cell)} numbers")
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.corrector_steps is not None and self.corrector_steps < 1:
            raise ValueError(f"corrector_steps must be at least 1, got {self.corrector_steps}")
        if self.candidates is not None and self.candidates < 0:
            raise ValueError(f"candidates must be at least 0, got {self.candidates}")
        if self.candidates and self.species is None:
            raise ValueError(f"candidates={self.candidates} are compared at the same atoms: species must be given")
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"no sampler {self.sampler!r}; there are {', '.join(get_args(Sampler))}")
        if self.corrector_steps is not None and self.sampler != "predictor_corrector":
            got = f"got corrector_steps={self.corrector_steps} and sampler={self.sampler}"
            raise ValueError(f"corrector_steps goes with sampler=predictor_corrector, {got}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        self.lattice  # noqa: B018  (a cell that cannot be is told now)

    @property
    def lattice(self) -> np.ndarray | None:
        """(3, 3) Å"""
        if self.cell is None:
            return None
        a, b, c, *angles = self.cell if len(self.cell) == 6 else (*self.cell * 3, 90.0, 90.0, 90.0)
        return lattice_from_parameters(a, b, c, *angles)


def read_species(species: str | None, formula: str | None, formula_units: int | None = None) -> tuple[str, ...]:
    """From "Na Na Cl Cl", or from a formula and the number of its units in the cell (None: 1). Raises ValueError."""
    if formula is None and formula_units is not None:
        raise ValueError(f"formula_units goes with a formula, got formula_units={formula_units} and none")
    if (species is None) == (formula is None):
        raise ValueError("either species or a formula says which atoms there are, got both or none")
    if species is not None:
        return tuple(species.replace(",", " ").split())
    formula_units = 1 if formula_units is None else formula_units
    if formula_units < 1:
        raise ValueError(f"formula_units must be at least 1, got {formula_units}")
    try:
        counts = parse_formula(formula or "")
    except PromptError as err:
        raise ValueError(str(err)) from None
    return tuple(symbol for symbol, count in counts.items() for _ in range(count * formula_units))


@dataclass(frozen=True, eq=False)
class Diffused:
    """A generated crystal and what was found of it."""

    crystal: Crystal
    record: CIFRecord  # checked
    seed: int
    settings: dict[str, Any]
    min_distance_ang: float
    overlaps: bool  # atoms closer than their elements may come
    coordination: Ints  # (n_atoms,)

    @property
    def valid(self) -> bool:
        return self.record.rejected_by is None

    @property
    def verdict(self) -> str:
        passed = f"{'PASSED' if self.valid else 'FAILED'}: minimum distance {self.min_distance_ang:.2f} Å"
        if self.valid:
            return passed
        return f"{passed}, {'atoms overlap' if self.overlaps else f'{self.record.rejected_by}: {self.record.reason}'}"


def diffuse(
    model: CrystalDiffusionModel, config: DiffuseConfig, info: dict[str, Any] | None = None
) -> Iterator[Diffused]:
    """`config.num` crystals from noise, checked, one by one. The same seed gives the same crystals.

    `info` as load_refiner gives it; its model hash goes into the provenance. ValueError, see model.sample, where no
    species are given and the model keeps no training cells that fit.
    """
    seed = secrets.randbits(32) if config.seed is None else config.seed
    if config.candidates is None:
        config = replace(config, candidates=CANDIDATES if config.species and config.cell else 0)
    config = replace(config, seed=seed)
    candidates = config.candidates or 0
    at_once = max(1, ATOMS_AT_ONCE // _most_atoms(model, config))
    checks = FilterConfig(config.rules)
    settings = _settings(model, config)
    about = {"generator": "diffusion", "model_hash": (info or {}).get("model_hash", ""), "crystallm": __version__}
    for first in range(0, config.num, at_once):
        number, lattice, species = min(at_once, config.num - first), config.lattice, config.species
        sampling: dict[str, Any] = {"num_steps": config.num_steps, "sampler": config.sampler}
        if config.corrector_steps is not None:
            sampling["corrector_steps"] = config.corrector_steps
        # The first batch alone is drawn by the seed itself; no two by the same one, candidates' batches counted too.
        sampling["seed"] = (seed + first * max(1, candidates)) % 2**63
        if candidates and species is not None:
            drawn = sample_best(model, number, lattice, species, candidates, **sampling)
        else:
            drawn = model.sample(number, lattice, species, **sampling)
        records = []
        for index, crystal in enumerate(drawn, start=first):
            provenance = about | {"seed": seed, "index": index, "settings": settings}
            records.append(CIFRecord(f"gen-{index:06d}", write_cif(crystal, provenance), provenance=provenance))
        for crystal, record in zip(drawn, filter_records(records, checks), strict=True):
            yield _describe(crystal, record, seed, settings)


def run(
    model: CrystalDiffusionModel, info: dict[str, Any], config: DiffuseConfig, out: str | Path | None = None
) -> str:
    """Generate, print each verdict, write to the folder `out` where there is one; the text to end with."""
    batch: list[Diffused] = []

    def told() -> Iterator[Diffused]:
        for one in diffuse(model, config, info):
            batch.append(one)
            if len(batch) <= MAX_SHOWN:
                print(f"{len(batch):>4}  {one.crystal.reduced_formula}  {one.verdict}", flush=True)
            yield one

    path = None
    if out is None:
        collections.deque(told(), maxlen=0)
    else:
        path = write_batch(told(), out)
    more = f"… and {len(batch) - MAX_SHOWN:,} more\n" if len(batch) > MAX_SHOWN else ""
    where = f"{len(batch)} written to {out}, records in {path}" if path else "nothing written"
    return f"{more}\n{batch_table(batch)}\nseed {batch[0].seed}; {where}"


def _most_atoms(model: CrystalDiffusionModel, config: DiffuseConfig) -> int:
    if config.species is not None:
        return len(config.species)
    return int(model.training_cells.n_atoms.max()) if model.training_cells else 1


def read_training_cells(path: str | Path, seed: int = 0) -> TrainingCells:
    """Of the train split of token shards, or MAX_KEPT of its crystals drawn at random; for `model.training_cells`.

    Raises FileNotFoundError, ValueError for a folder that holds no shards or no crystal.
    """
    shards = TokenShards(path, "train")
    tokenizer = CIFTokenizer(shards.meta["vocabulary"])
    shards.check_vocabulary(tokenizer)
    places = np.random.default_rng(seed).permutation(len(shards))[:MAX_KEPT]
    packed, _ = packed_crystals([tokenizer.decode(shards[int(place)]) for place in np.sort(places)])
    return TrainingCells.of(packed, np.arange(len(packed)))


def _settings(model: CrystalDiffusionModel, config: DiffuseConfig) -> dict[str, Any]:
    """Plain data: what, with the seed, makes the same crystals again."""
    settings = asdict(config) | {"species": config.species and list(config.species)}
    settings |= {"cell": config.cell and list(config.cell)}
    return settings | {"num_steps": config.num_steps or model.config.timesteps}


def _describe(crystal: Crystal, record: CIFRecord, seed: int, settings: dict[str, Any]) -> Diffused:
    lattice, frac = crystal.lattice, crystal.frac_coords
    overlaps = bool(distance_violations(lattice, frac, crystal.atomic_numbers))
    shortest, neighbours = shortest_distance(lattice, frac), coordination_numbers(lattice, frac)
    return Diffused(crystal, record, seed, settings, shortest, overlaps, neighbours)


# ---------------------------------------------------------------- statistics

COLUMNS = (
    ("density", "g/cm³"),
    ("volume", "Å³"),
    ("coordination", ""),
    ("minimum distance", "Å"),
)


def batch_table(batch: Sequence[Diffused]) -> str:
    """Mean ± standard deviation over all, valid or not, and the valid share."""
    values = np.array([_row(one) for one in batch])
    lines = []
    for (name, unit), column in zip(COLUMNS, values.T, strict=True):
        spread = column.std(ddof=1) if len(column) > 1 else 0.0
        lines.append(f"{name:<18}{column.mean():>10.2f} ± {spread:<8.2f}{unit}".rstrip())
    n_valid = sum(one.valid for one in batch)
    lines.append(f"{'valid':<18}{100 * n_valid / len(batch):>10.1f} %  ({n_valid} of {len(batch)})")
    return "\n".join(lines)


def _row(one: Diffused) -> tuple[float, ...]:
    c = one.crystal
    return c.density_g_per_cm3, c.volume_ang3, float(one.coordination.mean()), one.min_distance_ang


# ---------------------------------------------------------------- files


def write_batch(batch: Iterable[Diffused], out: str | Path, day: date | None = None) -> Path:
    """`generated_structure_DATE_NUMBER.npz` and `.cif` for each, and a parquet file of the records; its path.

    Numbers go on after those of the same day, and pass by those of a run beside this one; nothing is overwritten. The
    parquet file stands beside the folder, so that a reader of the folder does not meet each crystal twice.
    """
    folder = Path(out).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; wanted a folder")
    folder.mkdir(parents=True, exist_ok=True)
    today = f"{day or date.today():%Y%m%d}"
    stem = f"{NAME}_{today}"
    next_number = _next_number(folder, today)
    numbers, records = [], []
    for one in batch:
        number, file = _claim(folder, stem, next_number)
        with file:
            np.savez(file, **_arrays(one))  # type: ignore[arg-type]
        record = replace(one.record, id=f"{stem}_{number:04d}")
        (folder / f"{record.id}.cif").write_text(record.cif, encoding="utf-8")
        numbers.append(number)
        records.append(record)
        next_number = number + 1
    first, last = (numbers[0], numbers[-1]) if numbers else (next_number, next_number)
    path = folder.with_name(f"{folder.name}_{today}_{first:04d}-{last:04d}.parquet")
    write_records(path, records, overwrite=False)
    return path


def _claim(folder: Path, stem: str, number: int) -> tuple[int, BinaryIO]:
    """The first number from this one on whose .npz no other run has begun, and that file, begun."""
    while True:
        try:
            return number, open(folder / f"{stem}_{number:04d}.npz", "xb")
        except FileExistsError:
            number += 1


def _next_number(folder: Path, today: str) -> int:
    """After those of the folder and of the parquet files beside it, whose structures may have been moved elsewhere."""
    structure = re.compile(rf"{NAME}_{today}_(\d+)\.(?:npz|cif)")
    batch = re.compile(rf"{re.escape(folder.name)}_{today}_\d+-(\d+)\.parquet")
    taken = [structure.fullmatch(file.name) for file in folder.iterdir()]
    taken += [batch.fullmatch(file.name) for file in folder.parent.iterdir()]
    return 1 + max((int(match[1]) for match in taken if match), default=0)


def _arrays(one: Diffused) -> dict[str, np.ndarray]:
    """What the .npz holds; read it with np.load, without pickle."""
    crystal = one.crystal
    values = {
        "positions": crystal.frac_coords,  # (n_atoms, 3) fractional
        "lattice": crystal.lattice,  # (3, 3) rows, Å
        "species": crystal.symbols,  # (n_atoms,)
        "valid": one.valid,
        "min_distance": one.min_distance_ang,  # Å
        "n_atoms": crystal.n_atoms,
        "density": crystal.density_g_per_cm3,  # g/cm³
        "volume": crystal.volume_ang3,  # Å³
        "coordination": one.coordination,  # (n_atoms,)
        "seed": one.seed,
        "settings": json.dumps(one.settings),
    }
    return {name: np.asarray(value) for name, value in values.items()}
