"""How well the canonical text keeps crystals: round trips, and one text for all descriptions of a crystal."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, to_primitive
from crystallm.canonical import canonicalize
from crystallm.cif import CIFError, parse_cif
from crystallm.crystal import Crystal
from crystallm.interop import to_structure
from crystallm.parallel import Failure
from crystallm.symmetry import SymmetryError, find_space_group
from tokenizer import CIFTokenizer

MAX_RMS = 0.02  # in units of (volume / n_atoms) ** (1/3), as StructureMatcher gives it


@dataclass(frozen=True)
class CanonicalReport:
    """What became of one crystal."""

    id: str
    lost_by: str | None  # why the round trip failed; None: it holds
    detail: str = ""
    rms: float = float("nan")
    n_tokens: int = 0
    same_text: bool | None = None  # of the crystal described anew; None: there is no text
    same_letters: bool | None = None


def describe_anew(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """The same crystal in another basis, origin, orientation and order of atoms."""
    while True:
        basis = rng.integers(-1, 2, (3, 3))
        if round(abs(np.linalg.det(basis))) == 1:
            break
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    order = rng.permutation(crystal.n_atoms)
    frac = crystal.frac_coords @ np.linalg.inv(basis) + rng.random(3)
    return Crystal(basis @ crystal.lattice @ rotation, frac[order], crystal.atomic_numbers[order])


def report_canonical(item: tuple[str, str], match: bool = True) -> CanonicalReport:
    """(id, CIF text) → what the round trip and a second description give. Never raises for a bad CIF."""
    record_id, text = item
    try:
        crystal, _ = parse_cif(text)
        unit = canonicalize(crystal)
    except (CIFError, CanonicalError) as err:
        return CanonicalReport(record_id, err.reason, err.message)
    written = unit.to_text()
    n_tokens = len(_tokenizer().encode(written))
    try:
        again = canonicalize(describe_anew(crystal, np.random.default_rng(sum(record_id.encode()))))
        same_text = again.to_text() == written
        same_letters = _letters(again) == _letters(unit)
    except CanonicalError:
        same_text = same_letters = False
    lost_by, detail, rms = (
        _round_trip(crystal, AsymmetricUnit.from_text(written)) if match else (None, "", float("nan"))
    )
    return CanonicalReport(record_id, lost_by, detail, rms, n_tokens, same_text, same_letters)


def summarize(reports: Iterable[CanonicalReport | Failure]) -> dict[str, Any]:
    """Shares over all crystals read; `lost_by` counts the failed round trips by cause, `lost` lists them."""
    n, tokens, rms, same_text, same_letters, lost = 0, [], [], 0, 0, []
    for report in reports:
        if isinstance(report, Failure):
            report = CanonicalReport(str(report.index), "failure", str(report))
        n += 1
        same_text += bool(report.same_text)
        same_letters += bool(report.same_letters)
        if report.n_tokens:
            tokens.append(report.n_tokens)
        if not math.isnan(report.rms):
            rms.append(report.rms)
        if report.lost_by:
            lost.append((report.id, report.lost_by, report.detail))
    return {
        "n_read": n,
        "round_trip": (n - len(lost)) / n,
        "lost_by": dict(Counter(cause for _, cause, _ in lost)),
        "median_rms": float(np.median(rms)) if rms else None,
        "same_text": same_text / n,
        "same_letters": same_letters / n,
        "mean_tokens": float(np.mean(tokens)),
        "lost": lost,
    }


def time_canonical(items: Iterable[tuple[str, str]]) -> None:
    """CIF → canonical text and nothing else, for a clock around it."""
    for _, text in items:
        try:
            canonicalize(parse_cif(text)[0]).to_text()
        except (CIFError, CanonicalError):
            continue  # counted by report_canonical


def _letters(unit: AsymmetricUnit) -> tuple:
    return unit.space_group_number, tuple((site.symbol, site.letter) for site in unit.sites)


def _round_trip(crystal: Crystal, unit: AsymmetricUnit) -> tuple[str | None, str, float]:
    back = to_primitive(unit.to_crystal(), unit.group)
    found = _matcher().get_rms_dist(to_structure(crystal), to_structure(back))
    if found is None:
        return "no_match", f"{crystal.n_atoms} atoms, {unit.group.symbol}", float("nan")
    rms = float(found[0])
    if rms > MAX_RMS:
        return "rms", f"RMS {rms:.3f}", rms
    try:
        before, after = find_space_group(crystal).symbol, find_space_group(back).symbol
    except SymmetryError as err:
        return "symmetry", str(err), rms
    if before != after:
        return "group", f"{before} before, {after} after", rms
    return None, "", rms


@functools.cache
def _matcher() -> StructureMatcher:
    return StructureMatcher()


@functools.cache
def _tokenizer() -> CIFTokenizer:
    return CIFTokenizer()
