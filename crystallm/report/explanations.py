"""Explanations of the crystals in files: pictures, tables and a summary of each."""

from __future__ import annotations

import csv
import hashlib
import shutil
import urllib.parse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from crystallm.data.readers import read_sources
from crystallm.output import check_output_folder
from crystallm.properties.ensemble import single
from crystallm.properties.explanation import Explanation, explain
from crystallm.properties.prediction import Predictor, never_negative
from crystallm.properties.samples import Rejected, make_samples
from crystallm.records import CIFRecord
from crystallm.rejections import rejection
from crystallm.report.explanation_pictures import PICTURES, figures_of, target_label

SHOWN = 3  # sentences and sites in a summary
TABLE, ATTENTION_TABLE = "explanations.csv", "attention.csv"
ATTENTION_COLUMNS = ("id", "sentence", "word_number", "word", "site", "site_to_word_share", "word_to_site_share")


def explain_paths(
    paths: Sequence[str | Path],
    out: str | Path,
    model: str | None = None,
    target: str | None = None,
    limit: int = 10,
    cif_column: str = "cif",
    id_column: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> tuple[int, int]:
    """Explain the first `limit` records; how many were explained, and how many were looked at.

    Writes into the folder `out`: pictures in a folder for each crystal, explanations.csv, and attention.csv where there
    is attention; with `overwrite` in place of those of an earlier run. What cannot be read or predicted is a row of
    explanations.csv with its reason. `target`: the predictor's first if left out. Raises FileNotFoundError, ValueError
    for a property that is not predicted and for an ensemble, FileExistsError for a folder that is not empty.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    folder = Path(out)
    check_output_folder(folder, lambda path: _is_ours(path, folder), "files of an earlier run", paths, overwrite)
    predictor = Predictor.load(model, device)
    single(predictor.model, "an explanation")
    name = predictor.target(target).name if target else predictor.targets[0]
    columns = ("id", "part", "name", "text", f"value_{name}", f"change_{name}")
    records = list(islice(read_sources(paths, cif_column, id_column=id_column, properties={}), limit + 1))
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.iterdir():
        shutil.rmtree(earlier) if earlier.is_dir() else earlier.unlink()
    _write(folder / TABLE, columns, [])  # by which a run that breaks off is known
    rows: list[dict[str, object]] = []
    attention: list[dict[str, object]] = []
    names: set[str] = set()
    n_explained = 0
    for record in records[:limit]:
        found = explain_record(predictor, record, name)
        if isinstance(found, Rejected):
            print(f"{record.id}: not explained: {rejection(found.rejected_by, found.reason)}\n")
            rows.append({"id": record.id, "part": "rejected", "name": found.rejected_by, "text": found.reason})
            continue
        n_explained += 1
        print(summary(found) + "\n")
        rows += table_rows(found)
        attention += attention_rows(found)
        own = folder / folder_name(record.id, names)
        own.mkdir(exist_ok=True)
        for picture, figure in figures_of(found).items():
            figure.savefig(own / f"{picture}.png")
    _write(folder / TABLE, columns, rows)
    if attention:
        _write(folder / ATTENTION_TABLE, ATTENTION_COLUMNS, attention)
    n = len(records[:limit])
    more = "; there are more, --limit says how many are looked at" if len(records) > limit else ""
    print(f"{n_explained} of {n} explained{more}; written to {folder}")
    return n_explained, n


def _is_ours(path: Path, folder: Path) -> bool:
    """Whether explain_paths wrote it into the folder"""
    if not (folder / TABLE).is_file():
        return False
    if path.parent == folder:
        return path.is_dir() or path.name in (TABLE, ATTENTION_TABLE)
    return path.parent.parent == folder and path.name in {f"{name}.png" for name in PICTURES}


def explain_record(predictor: Predictor, record: CIFRecord, target: str) -> Explanation | Rejected:
    """Its explanation, or why there is none."""
    samples, rejected = make_samples([record], (), predictor.texts, workers=0)
    if rejected:
        return rejected[0]
    try:
        return explain(predictor, samples, 0, target)
    except ValueError as err:  # more atoms, or more words, than its encoders take
        return Rejected(0, record.id, str(err), "too_large")


def summary(explanation: Explanation) -> str:
    """A few lines that name what changes the value most."""
    branch = "both modalities" if explanation.branch == "fused" else f"{explanation.branch} alone"
    formula = "" if explanation.crystal is None else f" {explanation.crystal.reduced_formula}"
    below = explanation.value < 0 and never_negative(explanation.target)
    lines = [
        f"{explanation.id}{formula}: {target_label(explanation.target)} {explanation.value:.3f} "
        f"± {explanation.error:.3f}, from {branch}{'; predictions show 0' if below else ''}"
    ]
    if (values := explanation.modalities) is not None:
        shares = values.contributions()
        lines.append(
            f"  modalities  structure {shares['structure']:+.3f}, text {shares['text']:+.3f}, on top of "
            f"{values.without_both:.3f} without both; structure alone says {values.structure_alone:.3f}, "
            f"text alone {values.text_alone:.3f}"
        )
    if explanation.scope_changes:
        for k in _largest(explanation.sentence_changes):
            lines.append(
                f"  sentence    {explanation.sentence_changes[k]:+.3f} without {explanation.sentences[k].text!r}"
            )
        scopes = ", ".join(f"{_signed(change)} without all {s}" for s, change in explanation.scope_changes.items())
        lines.append(f"  sentences   {scopes} ones")
    silenced, removed = explanation.site_changes.silenced, explanation.site_changes.removed
    for k in _largest(removed):
        site = explanation.sites[k]
        what = f"all {len(site.atoms)} {site.name}" if len(site.atoms) > 1 else site.name
        lines.append(f"  site        {removed[k]:+.3f} with {what} removed, {silenced[k]:+.3f} silenced")
    if explanation.attention is not None:
        shares_of = explanation.attention.sites_to_sentences(explanation.sites, len(explanation.sentences))
        even = explanation.attention.even_shares(len(explanation.sentences))
        weights = np.array([len(site.atoms) for site in explanation.sites], dtype=float)
        mean = weights @ shares_of / weights.sum()  # (n_sentences,) over all atoms
        k = int(np.argmax(mean))
        lines.append(
            f"  attention   atoms look most at {explanation.sentences[k].text!r}: {mean[k]:.0%} (even: {even[k]:.0%})"
        )
    return "\n".join([*lines, *(f"  {note}" for note in explanation.notes)])


def table_rows(explanation: Explanation) -> list[dict[str, object]]:
    """Of explanations.csv: `value` without what the row names, `change` against the value with everything.

    Of part `contribution`, `change` is the share of the modality. Numbers that do not exist are empty.
    """
    value_column, change_column = f"value_{explanation.target}", f"change_{explanation.target}"

    def row(part: str, name: str, value: float | None, change: float | None, text: str = "") -> dict[str, object]:
        numbers = {value_column: _number(value), change_column: _number(change)}
        return {"id": explanation.id, "part": part, "name": name, "text": text, **numbers}

    full = explanation.value
    rows = [
        row("prediction", explanation.branch, full, None),
        row("expected_error", explanation.branch, explanation.error, None),
    ]
    if explanation.modalities is not None:
        for name, value in vars(explanation.modalities).items():
            rows.append(row("modality", name, value, value - full))
        for modality, share in explanation.modalities.contributions().items():
            rows.append(row("contribution", modality, None, share))
    for k, (sentence, change) in enumerate(
        zip(explanation.sentences, explanation.sentence_changes.tolist(), strict=True), 1
    ):
        rows.append(row("sentence", str(k), full + change, change, sentence.text))
    for scope, change in explanation.scope_changes.items():
        rows.append(row("scope", scope, full + change, change))
    name_of = {atom: site.name for site in explanation.sites for atom in site.atoms}
    for part, names, changes in (
        ("site", [site.name for site in explanation.sites], explanation.site_changes),
        ("atom", [f"{name_of[atom]}:{atom}" for atom in sorted(name_of)], explanation.atom_changes),
    ):
        for way in ("silenced", "removed"):
            for name, change in zip(names, getattr(changes, way).tolist(), strict=True):
                rows.append(row(f"{part}_{way}", name, full + change, change))
    return [*rows, *(row("note", "", None, None, note) for note in explanation.notes)]


def attention_rows(explanation: Explanation) -> list[dict[str, object]]:
    """Of attention.csv, one for each word and site; shares of 1; none where there is no attention."""
    attention = explanation.attention
    if attention is None:
        return []
    to_words = attention.sites_to_words(explanation.sites)  # (n_sites, n_words)
    to_sites = np.stack([attention.words_to_atoms[:, list(site.atoms)].sum(axis=1) for site in explanation.sites])
    rows = []
    for word, text in enumerate(attention.words):
        for k, site in enumerate(explanation.sites):
            shares = (_number(to_words[k, word]), _number(to_sites[k, word]))
            sentence = int(attention.sentence_of_word[word]) + 1
            values = (explanation.id, sentence, word + 1, text, site.name, *shares)
            rows.append(dict(zip(ATTENTION_COLUMNS, values, strict=True)))
    return rows


def folder_name(record_id: str, taken: set[str]) -> str:
    """One that every file system takes, unlike those in `taken`, to which it is added."""
    name = urllib.parse.quote(record_id, safe=" +=,()[]@").strip(". ") or "crystal"
    if len(name) > 120:
        name = f"{name[:100]}-{hashlib.sha256(record_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    numbered: Iterator[str] = (name if k == 1 else f"{name}-{k}" for k in range(1, len(taken) + 2))
    chosen = next(own for own in numbered if own.lower() not in taken)
    taken.add(chosen.lower())
    return chosen


def _largest(changes: np.ndarray) -> list[int]:
    """Places of the few largest, by size; those that are nan are none"""
    there = np.flatnonzero(np.isfinite(changes))
    return there[np.argsort(-np.abs(changes[there]), kind="stable")][:SHOWN].tolist()


def _signed(change: float) -> str:
    return "nothing left" if np.isnan(change) else f"{change:+.3f}"


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.6g}"


def _write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
