"""Why a predictor says what it says of one crystal: what modalities, sentences and atoms do to a value.

    explanation = explain(predictor, samples, index=0, target="formation_energy")
    explanation.sentence_changes[3]  # what leaving out the fourth sentence does, in the target's unit

Every number is a change of the value of the branch that answers, in the target's unit: the value without something
minus the value with everything. Below 0 the value would be lower without it. Values are not cut off at 0 as
predictions of a band gap are, or an ablation could seem to change nothing.

Sentence: the text is written and read anew without it. Training drops sentences as well (augmentation.py), so that
this is a text as the model knows it. The structure stays.

Atom, in two ways, as one number would hide what the other shows:
- silenced: the encoder sees the whole crystal, but the atom's token is masked out of what is pooled and fused. What
  the atom itself says is missing; its neighbours' tokens, which know of it, stay. No vacancy is made, so the encoder
  reads nothing strange.
- removed: the atom is taken out of the crystal, its cell kept. What the structure knows because of the atom is missing,
  in its neighbours too. The crystal that is left has a vacancy at each of its images, unlike most crystals of training.
In both the text still speaks of the whole crystal. Where all atoms are hidden the structure is missing.

Attention exists between words and atoms in the cross-attention fusion alone; the other fusions take means of the tokens
before the modalities meet. It says where the model looks, not what that does to the value: compare it with the
ablations. Attention among atoms within the structure encoder, or among words within the text encoder, is not shown:
its layers mix what each token stands for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crystallm.crystal import Crystal
from crystallm.properties.description import Description, Scope, Sentence
from crystallm.properties.encoding import Encoding
from crystallm.properties.ensemble import single
from crystallm.properties.frozen import FrozenEncoder
from crystallm.properties.fusion import CrossAttention
from crystallm.properties.loader import cut_by_atoms
from crystallm.properties.prediction import Predictor
from crystallm.properties.predictor import Branch, PropertyBatch
from crystallm.properties.samples import SampleSet
from crystallm.properties.text import WordEncoder
from crystallm.symmetry import SymmetryError, find_symmetric_sites
from tokenizer.elements import SYMBOLS

SCOPES: tuple[Scope, Scope] = ("global", "local")
_MOST_ATOMS, _MOST_ROWS = 2048, 64  # variants that are encoded at once
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class ModalityValues:
    """Of one target, in its unit."""

    both: float  # the fused branch
    without_text: float  # the fused branch, with the learned token of the missing in the text's place
    without_structure: float
    without_both: float  # never trained, as no sample lacks both
    structure_alone: float  # the branch that has never seen a text
    text_alone: float

    def contributions(self) -> dict[Literal["structure", "text"], float]:
        """Shapley values of the two on the fused branch; they add up to `both - without_both`.

        A modality's is the mean of what it changes when it comes first and when it comes second (Shapley, A value for
        n-person games, 1953). Their difference is `without_text - without_structure`, which needs no `without_both`.
        """
        first, second = self.without_text - self.without_both, self.both - self.without_structure
        structure = (first + second) / 2
        return {"structure": structure, "text": self.both - self.without_both - structure}

    def shared(self) -> float:
        """What the text adds to the structure less than it adds to nothing; 0 where the two simply add up."""
        return (self.without_text - self.without_both) - (self.both - self.without_structure)


@dataclass(frozen=True)
class Site:
    name: str  # element, numbered where it has several sites: Na, O1, O2
    atoms: tuple[int, ...]  # equivalent by symmetry


@dataclass(frozen=True, eq=False)
class HidingChanges:
    """For n atoms, or n sites whose atoms are hidden together; nan where nothing would be left to predict from."""

    silenced: np.ndarray  # (n,)
    removed: np.ndarray  # (n,)


@dataclass(frozen=True, eq=False)
class Attention:
    """Of the cross-attention fusion, mean over its heads. A word is what stands between spaces, a number with its unit.

    Where a text encoder gives a vector for a sentence or a text only, that is the word. Words that it passes over, as
    WordEncoder does `is` and `the`, are not among them.
    """

    words: tuple[str, ...]
    sentence_of_word: np.ndarray  # (n_words,) int64
    tokens_of_word: np.ndarray  # (n_words,) int64: how many
    atoms_to_words: np.ndarray  # (n_atoms, n_words): which share of its attention an atom gives; rows add up to 1
    words_to_atoms: np.ndarray  # (n_words, n_atoms), mean over the word's tokens; rows add up to 1

    def sites_to_words(self, sites: Sequence[Site]) -> np.ndarray:
        """(n_sites, n_words), mean over the atoms of each site; rows add up to 1"""
        return np.stack([self.atoms_to_words[list(site.atoms)].mean(axis=0) for site in sites])

    def sites_to_sentences(self, sites: Sequence[Site], n_sentences: int) -> np.ndarray:
        """(n_sites, n_sentences), summed over the words of each; rows add up to 1"""
        return self.sites_to_words(sites) @ self._members(n_sentences)

    def sentences_to_sites(self, sites: Sequence[Site], n_sentences: int) -> np.ndarray:
        """(n_sentences, n_sites): mean over the tokens of each sentence, sum over the atoms; nan for one not read"""
        weight = self._members(n_sentences) * self.tokens_of_word[:, None]  # (n_words, n_sentences)
        with np.errstate(invalid="ignore"):
            rows = (weight / weight.sum(axis=0)).T @ self.words_to_atoms
        return np.stack([rows[:, list(site.atoms)].sum(axis=1) for site in sites], axis=1)

    def even_shares(self, n_sentences: int) -> np.ndarray:
        """(n_sentences,): what each would get if all tokens got the same"""
        return (self.tokens_of_word @ self._members(n_sentences)) / self.tokens_of_word.sum()

    def _members(self, n_sentences: int) -> np.ndarray:
        return (self.sentence_of_word[:, None] == np.arange(n_sentences)).astype(np.float64)  # (n_words, n_sentences)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Of one sample and one target; the changes are in the unit that ends the target's name."""

    id: str
    target: str
    value: float
    error: float  # mean absolute error to be expected
    branch: Branch  # which answers, and whose changes these are
    crystal: Crystal | None
    sentences: tuple[Sentence, ...]  # of a canonical text: its lines, as sentences of kind "line"
    sites: tuple[Site, ...]
    modalities: ModalityValues | None
    sentence_changes: np.ndarray  # (n_sentences,); nan where no text and no structure would be left
    scope_changes: dict[Scope, float]  # when all sentences of a scope are left out
    site_changes: HidingChanges
    atom_changes: HidingChanges
    attention: Attention | None
    notes: tuple[str, ...]  # what is not told, and why: "attention: the gated fusion ..."


@torch.no_grad()
def explain(predictor: Predictor, samples: SampleSet, index: int, target: str) -> Explanation:
    """`target` by its full name or the name without the unit.

    ValueError for a property that the predictor does not know, for an ensemble, for a sample without anything that it
    reads, and for one that its encoders refuse (too many atoms, too long a text).
    """
    name = predictor.target(target).name
    case = _Case(predictor, samples, index, predictor.targets.index(name))
    notes: list[str] = []
    there = list(case.items)
    branch: Branch = "fused" if len(there) == 2 else there[0]  # type: ignore[assignment]
    full = float(case.values(case.encodings, branch)[0])
    error = float(predictor.predict(samples.some(np.array([index]))).of(name)[1][0])
    sentences = _sentences(case)
    modalities = _modality_values(case, notes)
    sentence_changes, scope_changes = _text_changes(case, sentences, branch, full, notes)
    crystal = case.items.get("structure")
    sites = find_sites(crystal) if isinstance(crystal, Crystal) else ()
    atoms = [(k,) for k in range(crystal.n_atoms)] if isinstance(crystal, Crystal) else []
    return Explanation(
        id=samples.ids[index],
        target=name,
        value=full,
        error=error,
        branch=branch,
        crystal=crystal if isinstance(crystal, Crystal) else None,
        sentences=sentences,
        sites=sites,
        modalities=modalities,
        sentence_changes=sentence_changes,
        scope_changes=scope_changes,
        site_changes=_hiding_changes(case, [site.atoms for site in sites], branch, full),
        atom_changes=_hiding_changes(case, atoms, branch, full),
        attention=_attention(case, sentences, notes),
        notes=tuple(notes),
    )


def find_sites(crystal: Crystal) -> tuple[Site, ...]:
    """Atoms that symmetry makes alike, in the order of their first; each on its own where no symmetry is found."""
    try:
        site_of_atom = find_symmetric_sites(crystal).site_of_atom
    except SymmetryError:  # as in a description, which then takes every atom for a site
        site_of_atom = np.arange(crystal.n_atoms)
    _, first = np.unique(site_of_atom, return_index=True)
    groups = [tuple(np.flatnonzero(site_of_atom == site_of_atom[atom]).tolist()) for atom in np.sort(first)]
    symbols = [SYMBOLS[crystal.atomic_numbers[group[0]] - 1] for group in groups]
    names = []
    for k, symbol in enumerate(symbols):
        number = symbols[: k + 1].count(symbol)
        names.append(f"{symbol}{number}" if symbols.count(symbol) > 1 else symbol)
    return tuple(Site(name, group) for name, group in zip(names, groups, strict=True))


class _Case:
    """One sample before one predictor."""

    def __init__(self, predictor: Predictor, samples: SampleSet, index: int, column: int):
        self.model, self.device, self.column = single(predictor.model, "an explanation"), predictor.device, column
        self.encoders = self.model.encoders_by_modality()
        self.items: dict[str, Crystal | str] = {}
        self.description: Description | None = None  # where a description is what the text encoder reads
        for name, encoder in self.encoders.items():
            if encoder.reads == "crystal" and samples.n_atoms[index]:
                self.items[name] = samples.crystal(index)
            elif encoder.reads == "canonical" and samples.canonical_texts[index]:
                self.items[name] = samples.canonical_texts[index]
            elif encoder.reads == "description" and samples.descriptions[index]:
                self.description = Description.from_json(samples.descriptions[index])
                self.items[name] = str(self.description)
        if not self.items:
            wanted = " nor ".join(f"{name} ({encoder.reads})" for name, encoder in self.encoders.items())
            raise ValueError(f"{samples.ids[index]}: no {wanted}; nothing to predict from")
        self.encodings = {name: self.encode(name, [item]) for name, item in self.items.items()}  # of one sample

    def encode(self, name: str, items: Sequence[Any]) -> Encoding:
        """Variants of one modality's item; None is the token of the missing."""
        there = [item is not None for item in items]
        if not any(there):
            tokens = self.model.missing[name].expand(len(items), 1, -1)
            return Encoding(tokens, torch.ones(len(items), 1, dtype=torch.bool, device=tokens.device))
        part = self.encoders[name].collate([item for item in items if item is not None])
        batch = PropertyBatch({name: part}, {name: torch.tensor(there)}, torch.zeros(len(items), 0))
        return self.model.encode(batch.to(self.device))[name]

    def with_variants(self, name: str, variants: Encoding) -> dict[str, Encoding]:
        """Variants of one modality beside the other one as it is."""
        n = len(variants.mask)
        own = {other: _repeated(encoding, n) for other, encoding in self.encodings.items()}
        return own | {name: variants}

    def values(self, encodings: dict[str, Encoding], branch: Branch) -> np.ndarray:
        """(B,) in the target's unit"""
        means, scales = self.model.scaling()
        found = self.model.predict_from(encodings)[branch].mean[:, self.column].double()
        return (found * scales[self.column].double() + means[self.column].double()).cpu().numpy()


def _repeated(encoding: Encoding, n: int) -> Encoding:
    """Of one sample -> of n"""
    return Encoding(encoding.tokens.expand(n, -1, -1), encoding.mask.expand(n, -1))


def _modality_values(case: _Case, notes: list[str]) -> ModalityValues | None:
    if len(case.encoders) == 1:
        notes.append(f"modalities: this predictor knows {next(iter(case.encoders))} alone")
        return None
    if missing := [name for name in case.encoders if name not in case.items]:
        notes.append(f"modalities: the sample has no {missing[0]}")
        return None
    if not case.model.config.modality_dropout:
        notes.append(
            "modalities: trained without modality dropout, so that no token of a missing modality was learnt; "
            "what the fused branch says without one means little"
        )
    structure, text = case.items["structure"], case.items["text"]
    encodings = {
        "structure": case.encode("structure", [structure, structure, None, None]),
        "text": case.encode("text", [text, None, text, None]),
    }
    fused = case.values(encodings, "fused").tolist()
    alone = [float(case.values(case.encodings, branch)[0]) for branch in ("structure", "text")]
    return ModalityValues(*fused, *alone)


def _sentences(case: _Case) -> tuple[Sentence, ...]:
    if case.description is not None:
        return case.description.sentences
    lines = str(case.items.get("text", "")).splitlines()
    return tuple(Sentence(line, "global", "line") for line in lines)


def _text_changes(
    case: _Case, sentences: Sequence[Sentence], branch: Branch, full: float, notes: list[str]
) -> tuple[np.ndarray, dict[Scope, float]]:
    """(n_sentences,) and by scope"""
    if case.description is None:
        if "text" in case.items:
            notes.append("sentences: the text is a canonical CIF, which is none without one of its lines")
        elif "text" in case.encoders:
            notes.append("sentences: the sample has no text")
        return np.full(len(sentences), np.nan), {}
    scopes = [scope for scope in SCOPES if any(sentence.scope == scope for sentence in sentences)]
    kept = [[s for i, s in enumerate(sentences) if i != k] for k in range(len(sentences))]
    kept += [[s for s in sentences if s.scope != scope] for scope in scopes]
    texts = [str(Description(tuple(rest))) if rest else None for rest in kept]
    variants = case.with_variants("text", case.encode("text", texts))
    changes = case.values(variants, branch) - full
    if branch == "text":
        changes[[text is None for text in texts]] = np.nan
    n = len(sentences)
    return changes[:n], dict(zip(scopes, changes[n:].tolist(), strict=True))


def _hiding_changes(case: _Case, groups: Sequence[tuple[int, ...]], branch: Branch, full: float) -> HidingChanges:
    """For each group of atoms, hidden together"""
    crystal = case.items.get("structure")
    silenced, removed = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    if not isinstance(crystal, Crystal):
        return HidingChanges(silenced, removed)
    token, mask = case.encodings["structure"]
    assert mask.shape == (1, crystal.n_atoms), "a structure encoder gives one token for each atom"
    heard = np.ones((len(groups), crystal.n_atoms), dtype=bool)
    for row, group in enumerate(groups):
        heard[row, list(group)] = False
    for start in range(0, len(groups), _MOST_ROWS):
        rows = slice(start, start + _MOST_ROWS)
        variants = _silenced(Encoding(token, mask), torch.from_numpy(heard[rows]), case.model.missing["structure"])
        silenced[rows] = case.values(case.with_variants("structure", variants), branch) - full
    for chosen in cut_by_atoms(np.arange(len(groups)), heard.sum(axis=1), _MOST_ATOMS, _MOST_ROWS):
        crystals = [_some_atoms(crystal, heard[row]) for row in chosen]
        variants = case.encode("structure", crystals)
        removed[chosen] = case.values(case.with_variants("structure", variants), branch) - full
    if branch == "structure":
        nothing = ~heard.any(axis=1)
        silenced[nothing] = removed[nothing] = np.nan
    return HidingChanges(silenced, removed)


def _silenced(encoding: Encoding, heard: Tensor, missing: Tensor) -> Encoding:
    """One sample's tokens (1, n_atoms, C) -> (n, n_atoms, C) with the masks `heard` (n, n_atoms).

    Where none is heard, `missing` (C,) is.
    """
    heard = heard.to(encoding.mask.device, copy=True)
    tokens = encoding.tokens.repeat(len(heard), 1, 1)
    none = ~heard.any(dim=1)
    tokens[none, 0], heard[none, 0] = missing.to(tokens.dtype), True
    return Encoding(tokens, heard)


def _some_atoms(crystal: Crystal, kept: np.ndarray) -> Crystal | None:
    """`kept` (n_atoms,) bool; None where none is"""
    if not kept.any():
        return None
    return Crystal(crystal.lattice, crystal.frac_coords[kept], crystal.atomic_numbers[kept])


def _attention(case: _Case, sentences: Sequence[Sentence], notes: list[str]) -> Attention | None:
    fusion = case.model.fusion
    if fusion is None:
        notes.append("attention: one modality alone has no fusion in which words could look at atoms")
        return None
    if not isinstance(fusion, CrossAttention):
        notes.append(
            f"attention: the {case.model.config.fusion} fusion takes means over atoms and over words before they meet; "
            "there is no attention between words and atoms to show (train with predictor.head.fusion=cross_attention)"
        )
        return None
    if len(case.items) < 2:
        [there] = case.items
        notes.append(f"attention: the sample has {there} alone")
        return None
    encoder = case.encoders["text"]
    assert isinstance(encoder, WordEncoder | FrozenEncoder), "a text encoder tells the characters of its tokens"
    first, second = case.encoders  # in the order in which the fusion takes them
    found = fusion.weights(case.encodings[first], case.encodings[second])
    weights = {own: one[0].double().cpu().numpy() for own, one in zip((first, second), found, strict=True)}
    # (n_atoms, n_tokens), (n_tokens, n_atoms)
    text = str(case.items["text"])
    spans = encoder.spans(text)
    words, word_of_token = _words(text, spans.starts, spans.ends)
    members = (word_of_token[:, None] == np.arange(len(words))).astype(np.float64)  # (n_tokens, n_words)
    counts = members.sum(axis=0)
    ends = np.cumsum([len(sentence.text) + 1 for sentence in sentences])  # a space or a line's end after each
    return Attention(
        words=tuple(text[start:end] for start, end in words),
        sentence_of_word=np.searchsorted(ends, [start for start, _ in words], side="right"),
        tokens_of_word=counts.astype(np.int64),
        atoms_to_words=weights["structure"] @ members,
        words_to_atoms=(members / counts).T @ weights["text"],
    )


def _words(text: str, starts: Sequence[int], ends: Sequence[int]) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Where the words begin and end that hold a token, and which of them each token is in.

    What a token spans is one word: a number and its unit, or a sentence of which there is only one vector.
    """
    places = np.array([match.span() for match in _WORD.finditer(text)])  # (n, 2)
    first, last = (
        (np.searchsorted(places[:, 0], at, side="right") - 1).clip(min=0)
        for at in (np.asarray(starts), np.maximum(starts, np.asarray(ends) - 1))
    )
    joined = np.zeros(len(places), dtype=bool)  # with the one before
    for a, b in zip(first.tolist(), last.tolist(), strict=True):
        joined[a + 1 : b + 1] = True
    used, word_of_token = np.unique(np.cumsum(~joined)[first], return_inverse=True)
    groups = [places[np.cumsum(~joined) == k] for k in used]
    return [(int(group[0, 0]), int(group[-1, 1])) for group in groups], word_of_token
