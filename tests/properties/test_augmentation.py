"""Augmented descriptions: the same facts, in other words; drawn as the settings say and from the generator alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from crystallm.properties.augmentation import TextAugmentation, augment
from crystallm.properties.description import Description, Sentence, describe
from crystallm.properties.wordings import WORDINGS

NOTHING = TextAugmentation(paraphrase=False, drop=0.0, shuffle=False)


@pytest.fixture(scope="module")
def description(crystal_of) -> Description:
    return describe(crystal_of["olivine", "LiFePO4"])


def test_nothing_asked_for_changes_nothing(description):
    assert augment(description, NOTHING, np.random.default_rng(0)) == description


def test_the_generator_decides(description):
    settings = TextAugmentation(drop=0.3)
    texts = [str(augment(description, settings, np.random.default_rng(seed))) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_every_wording_is_used_and_says_the_same_numbers(description):
    def numbers(text: str) -> list[str]:
        return sorted(re.findall(r"\d+(?:\.\d+)?", text))

    rng = np.random.default_rng(0)
    seen: dict[str, set[str]] = {}
    for _ in range(60):
        for old, new in zip(
            description.sentences,
            augment(description, TextAugmentation(drop=0, shuffle=False), rng).sentences,
            strict=True,
        ):
            assert numbers(old.text) == numbers(new.text)
            assert (old.kind, old.scope, old.atoms, old.facts) == (new.kind, new.scope, new.atoms, new.facts)
            seen.setdefault(str(old.facts), set()).add(new.text)
    for sentence in description.sentences:
        assert len(seen[str(sentence.facts)]) == len(WORDINGS[sentence.kind])


def test_sentences_are_dropped_at_the_rate_asked_for_but_never_all(description):
    rng = np.random.default_rng(0)
    n = len(description.sentences)
    half = [len(augment(description, TextAugmentation(drop=0.5), rng).sentences) for _ in range(400)]
    assert np.mean(half) / n == pytest.approx(0.5, abs=0.03)
    assert min(len(augment(description, TextAugmentation(drop=0.99), rng).sentences) for _ in range(200)) == 1


def test_shuffling_keeps_the_sentences(description):
    settings = TextAugmentation(paraphrase=False, drop=0.0)
    shuffled = augment(description, settings, np.random.default_rng(2))
    assert shuffled.sentences != description.sentences
    assert sorted(s.text for s in shuffled.sentences) == sorted(s.text for s in description.sentences)


def test_sentences_of_another_describer_keep_their_words():
    other = Description((Sentence("Halite, Rock Salt structured.", "global", "robocrys"),))
    assert augment(other, TextAugmentation(drop=0.5), np.random.default_rng(0)) == other


def test_bad_settings():
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\), got 1"):
        TextAugmentation(drop=1.0)
    with pytest.raises(ValueError, match="without a sentence"):
        augment(Description(()), NOTHING, np.random.default_rng(0))
