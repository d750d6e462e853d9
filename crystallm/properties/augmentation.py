"""Descriptions said otherwise, in part, or in another order, and crystals a little distorted: what training shows
instead of one fixed text and one fixed structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crystallm.crystal import Crystal
from crystallm.properties.description import Description, Sentence
from crystallm.properties.wordings import WORDINGS, word


@dataclass(frozen=True)
class TextAugmentation:
    """What is done to each text, each time that it is read in training."""

    paraphrase: bool = True  # each sentence in any of its kind's wordings
    drop: float = 0.15  # share of sentences that are left out; one always stays
    shuffle: bool = True  # sentences in any order

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {self.drop}")


def augment(description: Description, settings: TextAugmentation, rng: np.random.Generator) -> Description:
    """Another description of the same crystal; the same state of `rng` gives the same one.

    Sentences without facts, such as Robocrystallographer's, keep their wording. As many random numbers are drawn
    whatever the settings, so that switching one off leaves the others' choices as they were.
    """
    sentences = description.sentences
    if not sentences:
        raise ValueError("a description without a sentence cannot be augmented")
    kept = rng.random(len(sentences)) >= settings.drop
    choices = rng.random(len(sentences))
    order = rng.permutation(len(sentences))
    if not kept.any():
        kept[order[0]] = True
    if not settings.shuffle:
        order = np.arange(len(sentences))
    chosen = [k for k in order.tolist() if kept[k]]
    if settings.paraphrase:
        return Description(tuple(_reworded(sentences[k], float(choices[k])) for k in chosen))
    return Description(tuple(sentences[k] for k in chosen))


def _reworded(sentence: Sentence, choice: float) -> Sentence:
    """`choice` in [0, 1)"""
    if not sentence.facts:
        return sentence
    text = word(sentence.kind, sentence.facts, int(choice * len(WORDINGS[sentence.kind])))
    return Sentence(text, sentence.scope, sentence.kind, sentence.atoms, sentence.facts)


@dataclass(frozen=True)
class CrystalDistortion:
    """What is done to each crystal, each time that it is read in training: its labels stay those of the relaxed one."""

    strain: float = 0.0  # standard deviation of each of the six components
    displacement_ang: float = 0.0  # standard deviation of each atom's displacement along each axis

    def __post_init__(self) -> None:
        for name in ("strain", "displacement_ang"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def distort(crystal: Crystal, settings: CrystalDistortion, rng: np.random.Generator) -> Crystal:
    """The crystal strained and its atoms displaced; as it is where both settings are 0."""
    if not settings.strain and not settings.displacement_ang:
        return crystal
    drawn = rng.normal(size=(3, 3)) * settings.strain
    symmetric = np.triu(drawn) + np.triu(drawn, 1).T
    displaced = rng.normal(size=crystal.frac_coords.shape) * settings.displacement_ang
    lattice = crystal.lattice @ (np.eye(3) + symmetric)
    return Crystal(lattice, crystal.frac_coords + displaced @ np.linalg.inv(lattice), crystal.atomic_numbers)
