"""Which of many samples to answer with, and which distinct crystals they are. Functions of records; nothing is drawn.

select(records, by="self_consistency")   # index of the answer among the valid records, None if there is none
print(polymorph_table(polymorphs(records, by="self_consistency")))   # the answer's row first
"""

from __future__ import annotations

import csv
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, is_canonical, to_primitive
from crystallm.canonical import canonicalize
from crystallm.checks.known import strip_conditions
from crystallm.cif import parse_cif
from crystallm.matching import PUBLISHED, SAME, Reduced, fits, reduce_crystal
from crystallm.records import CIFRecord

# benchmark: as structure prediction is scored. distinct: as uniqueness is counted. The former takes rock salt for zinc
# blende. Volumes are scaled in both.
Tolerance = Literal["benchmark", "distinct"]

ENERGY = "predicted_formation_energy_ev_per_atom"  # a score of records
ENERGY_WIDTH_EV = 0.3  # by which the votes of higher energies fall to 1/e; chosen on MP-20's validation rows
DENOISING = "denoising_error"  # a score of records
DENOISING_WIDTH = 0.2  # as ENERGY_WIDTH_EV


@functools.lru_cache(4096)
def _reduced(text: str) -> Reduced:
    unit = AsymmetricUnit.from_text(text)
    return reduce_crystal(to_primitive(unit.to_crystal(), unit.group))


def same_crystal(first: str, second: str, tolerance: Tolerance = "distinct") -> bool:
    """Of two canonical texts; the order of the two does not matter."""
    if first == second:
        return True
    if first > second:  # StructureMatcher is not symmetric: 4 of 589 pairs of samples depended on the order
        first, second = second, first
    return fits(_reduced(first), _reduced(second), PUBLISHED if tolerance == "benchmark" else SAME)


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
    places = _selection(by).places([records[k] for k in valid])
    return valid[places.index(min(places))]


class Place(NamedTuple):
    """What a selection makes of a record. They sort as the selection prefers them; the first is the answer."""

    order: tuple[float, ...]
    value: float = math.nan  # what the selection goes by; nan: no number
    n_agreeing: int = 0  # valid records of its cluster; 0: the selection forms none


def _first(records: Sequence[CIFRecord]) -> list[Place]:
    """The control: what costs one sample."""
    return [Place((k,)) for k in range(len(records))]


def _by_score(records: Sequence[CIFRecord], name: str) -> list[Place]:
    """The highest score, the earliest of equal ones; with `min:` before its name the lowest."""
    sign, key = (-1 if name.startswith("min:") else 1), score_of(name)
    for record in records:
        if key not in record.scores:
            raise ValueError(
                f"{record.id} has no score {key!r}; it has {', '.join(record.scores)}; "
                f"selections besides scores: {', '.join(SELECTIONS)}"
            )
    return [Place((-sign * record.scores[key], k), record.scores[key]) for k, record in enumerate(records)]


def score_of(by: str) -> str:
    """The score that `min:NAME`, `max:NAME` or `NAME` selects by."""
    return by.removeprefix("min:").removeprefix("max:")


def by_cluster(records: Sequence[CIFRecord], weigh: Callable[[Sequence[CIFRecord]], np.ndarray]) -> int:
    """The likeliest member of the heaviest cluster; of equally heavy ones, of that with the likeliest member."""
    places = _cluster_places(records, weigh)
    return places.index(min(places))


def _cluster_places(records: Sequence[CIFRecord], weigh: Callable[[Sequence[CIFRecord]], np.ndarray]) -> list[Place]:
    weights = weigh(records)
    order = _by_likelihood(records)
    places: dict[int, Place] = {}
    for group in clusters([text_of(records[k]) for k in order], "benchmark"):
        weight = float(sum(weights[order[k]] for k in group))
        for k in group:
            # Rounded: sums of equal weights in another order are equal too.
            places[order[k]] = Place((-round(weight, 9), group[0], k), weight, len(group))
    return [places[k] for k in range(len(records))]


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
    places: Callable[[Sequence[CIFRecord]], list[Place]]  # of valid records
    heading: str = ""  # of its values in a table; "": there are none, or a column has them already
    digits: int = 0  # of these values, after the point
    scorer: str | None = None  # for scorers.find_scorer: what the records are to be scored by before


# likelihood: log p of the text after the prompt, under the grammar softmax. Masks are left out of it on purpose: among
#   crystals that obey them, p ranks as the model conditioned on them would. It favours crystals with few free numbers.
# likelihood_per_token: the lowest perplexity, as CrystaLLM-pi ranks.
# self_consistency: the likeliest member of the largest cluster (at the benchmark's tolerance): its size estimates the
#   probability of the whole basin, whatever the number of digits that describe it.
# weighted_self_consistency: the same with importance weights, as stratified searches need.
# energy_votes: the same with votes that count exp(-E / 0.3 eV), E the predicted formation energy an atom.
# denoising_votes: the same with votes that count exp(-D / 0.2), D how badly the refiner tells which noise was added
#   to a sample (CrystalDiffusionModel.denoising_errors): another model's likelihood, of the same training crystals.
SELECTIONS: dict[str, Selection] = {
    "first": Selection(_first),
    "likelihood": Selection(functools.partial(_by_score, name="log_likelihood_nats")),
    "likelihood_per_token": Selection(
        functools.partial(_by_score, name="log_likelihood_per_token"), "log p/token", digits=3
    ),
    "self_consistency": Selection(functools.partial(_cluster_places, weigh=votes), "votes"),
    "weighted_self_consistency": Selection(
        functools.partial(_cluster_places, weigh=importance), "weighted votes", digits=2
    ),
    "energy_votes": Selection(
        functools.partial(_cluster_places, weigh=boltzmann), "energy votes", digits=2, scorer="formation_energy"
    ),
    "denoising_votes": Selection(
        functools.partial(_cluster_places, weigh=functools.partial(boltzmann, score=DENOISING, width=DENOISING_WIDTH)),
        "denoising votes",
        digits=2,
        scorer=DENOISING,
    ),
}


def _selection(by: str) -> Selection:
    if by in SELECTIONS:
        return SELECTIONS[by]
    name = score_of(by)
    is_shown = name == ENERGY or name in HEADINGS
    return Selection(functools.partial(_by_score, name=by), "" if is_shown else name, digits=3)


def check_selection(by: str, scores: Sequence[str]) -> None:
    """Raises ValueError where `by` is neither one of SELECTIONS nor one of the scores that records will have."""
    if by not in SELECTIONS and score_of(by) not in scores:
        raise ValueError(
            f"no way to select {by!r}; there are {', '.join(SELECTIONS)} and, as scores, {', '.join(scores)}"
        )


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
    weighted_share: float  # with importance weights: the model's own probability of it, as these samples tell; or nan
    space_group_number: int  # of the sample that the selection prefers, as the rest of the row
    space_group_symbol: str
    formula_units: int  # in the primitive cell; 0: not known
    log_likelihood_nats: float
    density_g_per_cm3: float
    volume_per_atom_ang3: float
    id: str
    formation_energy_ev_per_atom: float = math.nan  # predicted; nan: not asked for
    selected_by: str = "self_consistency"
    selection_value: float = math.nan  # what the selection goes by; of a vote, that of the sample's whole cluster
    n_agreeing: int = 1  # samples that agree with it as the selection counts them; n where it counts none
    answer: bool = False


def polymorphs(records: Sequence[CIFRecord], by: str = "self_consistency", weighted: bool = True) -> list[PolymorphRow]:
    """The distinct crystals among the valid records, as the selection prefers them: the first is select(records, by).

    A vote counts clusters at a looser tolerance, so rows of one cluster stand together, with the votes of all of it.
    `weighted=False`: weighted shares, nan then, do not stand for probabilities, since the records were not drawn from
    the model as it is: by a beam, a tree, or at another temperature than 1.
    """
    valid = [record for record in records if record.rejected_by is None]
    if not valid:
        return []
    places = _selection(by).places(valid)
    weights = importance(valid) / len(valid) if weighted else np.full(len(valid), np.nan)
    order = _by_likelihood(valid)
    groups = [[order[k] for k in group] for group in clusters([text_of(valid[k]) for k in order])]
    groups = sorted((sorted(group, key=places.__getitem__) for group in groups), key=lambda group: places[group[0]])
    return [
        _row(valid[group[0]], by, places[group[0]], number == 0, len(group), len(valid), float(weights[group].sum()))
        for number, group in enumerate(groups)
    ]


def _row(
    record: CIFRecord, by: str, place: Place, is_answer: bool, n: int, n_valid: int, weight: float
) -> PolymorphRow:
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
        selected_by=by,
        selection_value=place.value,
        n_agreeing=place.n_agreeing or n,
        answer=is_answer,
    )


HEADINGS = {
    "answer": "",
    "formula": "formula",
    "n": "n",
    "share": "share %",
    "selection_value": "",  # the selection's own
    "weighted_share": "weighted %",  # where it stands for a probability
    "space_group": "space group",
    "formula_units": "Z prim.",
    "log_likelihood_nats": "log p nats",
    "density_g_per_cm3": "g/cm³",
    "volume_per_atom_ang3": "Å³/atom",
    "formation_energy_ev_per_atom": "eV/atom",  # where energies were predicted
    "id": "sample",
}


def polymorph_table(rows: Sequence[PolymorphRow], limit: int = 20) -> str:
    """Text for a terminal, a line for each of the first `limit`, the answer's with a star."""
    headings = HEADINGS | {"selection_value": _selection(rows[0].selected_by).heading if rows else ""}
    left_out = {"selection_value"} if not headings["selection_value"] else set()
    optional = ("weighted_share", "formation_energy_ev_per_atom")
    left_out |= {name for name in optional if all(math.isnan(getattr(row, name)) for row in rows)}
    names = [name for name in headings if name not in left_out]
    cells = [[headings[name] for name in names]]
    cells += [[_cells(row)[name] for name in names] for row in rows[:limit]]
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


def _cells(row: PolymorphRow) -> dict[str, str]:
    return {
        "answer": "*" if row.answer else "",
        "formula": row.formula,
        "n": str(row.n),
        "share": f"{100 * row.share:.1f}",
        "selection_value": f"{row.selection_value:.{_selection(row.selected_by).digits}f}",
        "weighted_share": f"{100 * row.weighted_share:.1f}",
        "space_group": f"{row.space_group_symbol} ({row.space_group_number})",
        "formula_units": str(row.formula_units),
        "log_likelihood_nats": f"{row.log_likelihood_nats:.1f}",
        "density_g_per_cm3": f"{row.density_g_per_cm3:.2f}",
        "volume_per_atom_ang3": f"{row.volume_per_atom_ang3:.1f}",
        "formation_energy_ev_per_atom": f"{row.formation_energy_ev_per_atom:.3f}",
        "id": row.id,
    }


def write_polymorphs(path: str | Path, found: Iterable[tuple[str, Sequence[PolymorphRow]]]) -> None:
    """As CSV, a line a polymorph; `found`: prompts, and what was found for each."""
    names = [field.name for field in fields(PolymorphRow)]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", *names])
        for prompt, rows in found:
            writer.writerows([prompt, *(getattr(row, name) for name in names)] for row in rows)
