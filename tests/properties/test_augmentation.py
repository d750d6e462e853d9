"""Augmented descriptions: the same facts, in other words; crystals distorted by as much as was asked for. Both are
drawn as the settings say and from the generator alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from crystallm.crystal import Crystal
from crystallm.properties.augmentation import CrystalDistortion, TextAugmentation, augment, distort
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


# ---------------------------------------------------------------- crystals


def test_no_distortion_leaves_the_crystal_and_the_generator(crystal_of):
    crystal, rng = crystal_of["olivine", "LiFePO4"], np.random.default_rng(0)
    assert distort(crystal, CrystalDistortion(), rng) is crystal
    assert rng.random() == np.random.default_rng(0).random()


def test_distortions_are_of_the_size_that_was_asked_for(crystal_of):
    crystal, rng = crystal_of["olivine", "LiFePO4"], np.random.default_rng(0)
    drawn = [distort(crystal, CrystalDistortion(strain=0.01, displacement_ang=0.05), rng) for _ in range(200)]
    strains = np.array([np.linalg.inv(crystal.lattice) @ one.lattice - np.eye(3) for one in drawn])
    assert np.allclose(strains, strains.transpose(0, 2, 1))  # no rotation
    assert strains[:, [0, 0, 1], [0, 1, 2]].std() == pytest.approx(0.01, rel=0.1)
    fractional = np.array([one.frac_coords - crystal.frac_coords for one in drawn])
    fractional -= fractional.round()
    moved = np.einsum("nai,nij->naj", fractional, np.array([one.lattice for one in drawn]))
    assert moved.std() == pytest.approx(0.05, rel=0.05)
    assert all((one.atomic_numbers == crystal.atomic_numbers).all() for one in drawn)


def test_the_same_generator_gives_the_same_distortion(crystal_of):
    settings = CrystalDistortion(strain=0.01)
    first, second = (distort(crystal_of["olivine", "LiFePO4"], settings, np.random.default_rng(3)) for _ in range(2))
    assert isinstance(first, Crystal) and (first.lattice == second.lattice).all()
    moved = first.frac_coords - crystal_of["olivine", "LiFePO4"].frac_coords
    assert np.abs(moved - moved.round()).max() < 1e-12


@pytest.mark.parametrize("name", ["strain", "displacement_ang"])
def test_negative_distortions_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must not be negative, got -0.1"):
        CrystalDistortion(**{name: -0.1})
