"""Descriptions said otherwise, in part, or in another order: what training shows instead of one fixed text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
