"""Which of many samples to answer with, and which distinct crystals they are. Functions of records; nothing is drawn.

select(records, by="self_consistency")   # index of the answer among the valid records, None if there is none
print(polymorph_table(polymorphs(records)))
"""

from __future__ import annotations

import csv
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, is_canonical, to_primitive
from crystallm.canonical import canonicalize
from crystallm.checks.known import strip_conditions
from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.interop import to_structure
from crystallm.matching import Reduced, fits, reduce_crystal
from crystallm.records import CIFRecord

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

# benchmark: as structure prediction is scored (crystallm/matching.py): stol 0.5, angle_tol 10, ltol 0.3.
# distinct: StructureMatcher's own, as uniqueness is counted: 0.3, 5, 0.2. The former takes rock salt for zinc blende.
# Volumes are scaled in both.
Tolerance = Literal["benchmark", "distinct"]

ENERGY = "predicted_formation_energy_ev_per_atom"  # a score of records
ENERGY_WIDTH_EV = 0.3  # by which the votes of higher energies fall to 1/e; chosen on MP-20's validation rows


@functools.cache
def _matcher() -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


@functools.lru_cache(4096)
def _reduced(text: str) -> Reduced:
    unit = AsymmetricUnit.from_text(text)
    return reduce_crystal(to_primitive(unit.to_crystal(), unit.group))


@functools.lru_cache(4096)
def _structure(text: str) -> Structure:
    reduced = _reduced(text)
    return to_structure(Crystal(reduced.lattice, reduced.frac_coords, reduced.atomic_numbers))


def same_crystal(first: str, second: str, tolerance: Tolerance = "distinct") -> bool:
    """Of two canonical texts; the order of the two does not matter."""
    if first == second:
        return True
    if first > second:  # StructureMatcher is not symmetric: 4 of 589 pairs of samples depended on the order
        first, second = second, first
    if _reduced(first).counts != _reduced(second).counts:
        return False
    if tolerance == "benchmark":
        return fits(_reduced(first), _reduced(second))
    return bool(_matcher().fit(_structure(first), _structure(second), skip_structure_reduction=True))


def clusters(texts: Sequence[str], tolerance: Tolerance = "distinct") -> list[list[int]]:
    """Indices of canonical texts by distinct crystal, the largest cluster first, ties in the order given.

    The first text that no cluster holds begins one, and what matches it joins: so the order given decides which one
    stands for a cluster, its first index. "", the text of what has none, is a cluster of its own each time.
    """
    found: list[list[int]] = []
    leaders: dict[tuple[str, int], list[int]] = defaultdict(list)  # by formula and atoms: nothing else can match
    of_text: dict[str, int] = {}
    for k, text in enumerate(texts):
        if not text:
            found.append([k])
            continue
        if text not in of_text:
            bucket = leaders[text.partition("\n")[0], len(_reduced(text).atomic_numbers)]
            match = next((place for place in bucket if same_crystal(texts[found[place][0]], text, tolerance)), None)
            if match is None:
                match = len(found)
                bucket.append(match)
                found.append([])
            of_text[text] = match
        found[of_text[text]].append(k)
    return sorted(found, key=lambda members: (-len(members), members[0]))


# ---------------------------------------------------------------- the answer


def select(records: Sequence[CIFRecord], by: str = "self_consistency") -> int | None:
    """Index of the answer among the valid records (rejected_by None) of one prompt; None where none is valid.

    `by` is one of SELECTIONS, or a name in the records' scores, of which the highest wins ("min:NAME": the lowest).
    """
    valid = [k for k, record in enumerate(records) if record.rejected_by is None]
    if not valid:
        return None
    return valid[_chooser(by)([records[k] for k in valid])]


def _first(records: Sequence[CIFRecord]) -> int:
    """The control: what costs one sample."""
    return 0


def _by_score(records: Sequence[CIFRecord], name: str) -> int:
    """The highest score, the earliest of equal ones; with `min:` before its name the lowest."""
    sign, key = (-1 if name.startswith("min:") else 1), name.removeprefix("min:").removeprefix("max:")
    for record in records:
        if key not in record.scores:
            raise ValueError(
                f"{record.id} has no score {key!r}; it has {', '.join(record.scores)}; "
                f"selections besides scores: {', '.join(SELECTIONS)}"
            )
    return int(np.argmax([sign * record.scores[key] for record in records]))


def by_cluster(records: Sequence[CIFRecord], weigh: Callable[[Sequence[CIFRecord]], np.ndarray]) -> int:
    """The likeliest member of the heaviest cluster; of equally heavy ones, of that with the likeliest member."""
    weights = weigh(records)
    order = _by_likelihood(records)
    groups = clusters([text_of(records[k]) for k in order], "benchmark")
    # Rounded: sums of equal weights in another order are equal too.
    heaviest = max(groups, key=lambda group: (round(sum(weights[order[k]] for k in group), 9), -group[0]))
    return order[heaviest[0]]


def _by_likelihood(records: Sequence[CIFRecord]) -> list[int]:
    return sorted(range(len(records)), key=lambda k: -records[k].scores["log_likelihood_nats"])


def votes(records: Sequence[CIFRecord]) -> np.ndarray:
    """(n,) ones: every sample counts the same."""
    return np.ones(len(records))


def importance(records: Sequence[CIFRecord]) -> np.ndarray:
    """(n,) weights that sum to n: what the masks cut, given back.

    A sample drawn under masks has the probability p / exp(log_mask_mass), so with weights exp(log_mask_mass) samples
    at temperature 1 stand for the model conditioned on what the masks ask for. The same weights undo stratification.
    """
    log_mass = np.array([record.scores["log_mask_mass_nats"] for record in records])
    weights = np.exp(log_mass - log_mass.max())
    return weights * (len(records) / weights.sum())


def boltzmann(records: Sequence[CIFRecord], score: str = ENERGY, width: float = ENERGY_WIDTH_EV) -> np.ndarray:
    """(n,) exp(-value / width) of a score, in its unit; the lowest value counts 1.

    A sample that the predictor could not read has no vote; ValueError where that is true of all.
    """
    values = np.array([record.scores.get(score, np.nan) for record in records])
    if np.isnan(values).all():
        raise ValueError(f"{records[0].id} has no score {score!r}; it has {', '.join(records[0].scores)}")
    return np.nan_to_num(np.exp(-(values - np.nanmin(values)) / width))


@dataclass(frozen=True)
class Selection:
    choose: Callable[[Sequence[CIFRecord]], int]  # index among valid records
    scorer: str | None = None  # for scorers.find_scorer: what the records are to be scored by before


# likelihood: log p of the text after the prompt, under the grammar softmax. Masks are left out of it on purpose: among
#   crystals that obey them, p ranks as the model conditioned on them would. It favours crystals with few free numbers.
# likelihood_per_token: the lowest perplexity, as CrystaLLM-pi ranks.
# self_consistency: the likeliest member of the largest cluster (at the benchmark's tolerance): its size estimates the
#   probability of the whole basin, whatever the number of digits that describe it.
# weighted_self_consistency: the same with importance weights, as stratified searches need.
# energy_votes: the same with votes that count exp(-E / 0.3 eV), E the predicted formation energy an atom.
SELECTIONS: dict[str, Selection] = {
    "first": Selection(_first),
    "likelihood": Selection(functools.partial(_by_score, name="log_likelihood_nats")),
    "likelihood_per_token": Selection(functools.partial(_by_score, name="log_likelihood_per_token")),
    "self_consistency": Selection(functools.partial(by_cluster, weigh=votes)),
    "weighted_self_consistency": Selection(functools.partial(by_cluster, weigh=importance)),
    "energy_votes": Selection(functools.partial(by_cluster, weigh=boltzmann), scorer="formation_energy"),
}


def _chooser(by: str) -> Callable[[Sequence[CIFRecord]], int]:
    return SELECTIONS[by].choose if by in SELECTIONS else functools.partial(_by_score, name=by)


def text_of(record: CIFRecord) -> str:
    """The canonical text, without condition lines; "" for a crystal that has none: one with too long an edge, say."""
    if is_canonical(record.text):
        return strip_conditions(record.text)
    try:
        return canonicalize(record.crystal or parse_cif(record.cif)[0]).to_text()
    except CanonicalError:
        return ""


# ---------------------------------------------------------------- distinct crystals


@dataclass(frozen=True)
class PolymorphRow:
    formula: str
    n: int  # samples of this crystal
    share: float  # of the valid samples
    weighted_share: float  # with importance weights: the model's own probability of it, as these samples tell
    space_group_number: int  # of the likeliest sample, as the rest of the row
    space_group_symbol: str
    formula_units: int  # in the primitive cell; 0: not known
    log_likelihood_nats: float
    density_g_per_cm3: float
    volume_per_atom_ang3: float
    id: str
    formation_energy_ev_per_atom: float = math.nan  # predicted; nan: not asked for


def polymorphs(records: Sequence[CIFRecord], weighted: bool = True) -> list[PolymorphRow]:
    """The distinct crystals among the valid records, those with the largest weighted share first.

    `weighted=False`: the records were not drawn from the model (a beam, a tree), so that shares do not stand for
    probabilities; weighted shares are nan then, and the likeliest comes first.
    """
    valid = [record for record in records if record.rejected_by is None]
    if not valid:
        return []
    valid = [valid[k] for k in _by_likelihood(valid)]
    weights = importance(valid) / len(valid) if weighted else np.full(len(valid), np.nan)
    groups = clusters([text_of(record) for record in valid])
    rows = [_row(valid[group[0]], len(group), len(valid), float(weights[group].sum())) for group in groups]
    return sorted(rows, key=lambda row: -row.weighted_share if weighted else -row.log_likelihood_nats)


def _row(record: CIFRecord, n: int, n_valid: int, weight: float) -> PolymorphRow:
    crystal, header = parse_cif(record.cif)
    unit = AsymmetricUnit.from_text(text) if (text := text_of(record)) else None
    return PolymorphRow(
        formula=crystal.reduced_formula,
        n=n,
        share=n / n_valid,
        weighted_share=weight,
        space_group_number=unit.space_group_number if unit else header.space_group_number or 1,
        space_group_symbol=unit.group.symbol if unit else header.space_group_symbol or "P1",
        formula_units=unit.formula_units if unit else 0,
        log_likelihood_nats=record.scores["log_likelihood_nats"],
        density_g_per_cm3=crystal.density_g_per_cm3,
        volume_per_atom_ang3=crystal.volume_ang3 / crystal.n_atoms,
        id=record.id,
        formation_energy_ev_per_atom=record.scores.get(ENERGY, math.nan),
    )


HEADINGS = {
    "formula": "formula",
    "n": "n",
    "share": "share %",
    "weighted_share": "weighted %",
    "space_group": "space group",
    "formula_units": "Z prim.",
    "log_likelihood_nats": "log p nats",
    "density_g_per_cm3": "g/cm³",
    "volume_per_atom_ang3": "Å³/atom",
    "formation_energy_ev_per_atom": "eV/atom",  # where energies were predicted
    "id": "likeliest",
}


def polymorph_table(rows: Sequence[PolymorphRow], limit: int = 20) -> str:
    """Text for a terminal, a line for each of the first `limit`."""
    names = list(HEADINGS)
    if all(math.isnan(row.formation_energy_ev_per_atom) for row in rows):
        names.remove("formation_energy_ev_per_atom")
    cells = [[HEADINGS[name] for name in names]]
    cells += [[cell for name, cell in zip(HEADINGS, _cells(row), strict=True) if name in names] for row in rows[:limit]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = ("formula", "space_group", "id")
    lines = [
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(names, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]
    if len(rows) > limit:
        lines.append(f"… and {len(rows) - limit} more")
    return "\n".join(lines)


def _cells(row: PolymorphRow) -> tuple[str, ...]:
    return (
        row.formula,
        str(row.n),
        f"{100 * row.share:.1f}",
        "-" if np.isnan(row.weighted_share) else f"{100 * row.weighted_share:.1f}",
        f"{row.space_group_symbol} ({row.space_group_number})",
        str(row.formula_units),
        f"{row.log_likelihood_nats:.1f}",
        f"{row.density_g_per_cm3:.2f}",
        f"{row.volume_per_atom_ang3:.1f}",
        f"{row.formation_energy_ev_per_atom:.3f}",
        row.id,
    )


def write_polymorphs(path: str | Path, found: Iterable[tuple[str, Sequence[PolymorphRow]]]) -> None:
    """As CSV, a line a polymorph; `found`: prompts, and what was found for each."""
    names = [field.name for field in fields(PolymorphRow)]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", *names])
        for prompt, rows in found:
            writer.writerows([prompt, *(getattr(row, name) for name in names)] for row in rows)
