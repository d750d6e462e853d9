"""Explanations of predictors whose reasons are known: they were taught one sentence, or one species, or nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.properties.checkpoint import PredictorConfig, TextConfig, build_predictor
from crystallm.properties.description import Description, Sentence, describe
from crystallm.properties.encoding import Part
from crystallm.properties.explanation import Explanation, ModalityValues, explain, find_sites
from crystallm.properties.fusion import FUSIONS, CrossAttention
from crystallm.properties.loader import BatchMaker, LoaderConfig
from crystallm.properties.prediction import Predictor
from crystallm.properties.predictor import Branch, HeadConfig, Target
from crystallm.properties.samples import SampleSet
from crystallm.properties.structure import StructureConfig
from crystallm.properties.text import tokenize
from crystallm.properties.wordings import word
from tokenizer.elements import ATOMIC_NUMBERS

STRUCTURE = StructureConfig(width=32, n_layer=1, n_head=2, n_radial=4, cutoff_ang=4.2)
WORDS = TextConfig(width=32, n_layer=1, n_head=2)
SPECIES = ("Na", "Mg", "Cl", "O")
TOLD = "share_told"  # of what the text alone says
SEEN = "share_seen"  # of what the structure alone says
N_TRAIN, N_NEW = 1000, 14  # explained are those that were not trained on
NEW = range(N_TRAIN, N_TRAIN + N_NEW)
DENSITY = 1  # place of the sentence that tells


def sample_set(crystals: list[Crystal], descriptions: list[Description], **targets: np.ndarray) -> SampleSet:
    return SampleSet(
        ids=[f"made-{k}" for k in range(len(crystals))],
        lattices=np.stack([crystal.lattice for crystal in crystals]),
        n_atoms=np.array([crystal.n_atoms for crystal in crystals]),
        frac_coords=np.concatenate([crystal.frac_coords for crystal in crystals]),
        atomic_numbers=np.concatenate([crystal.atomic_numbers for crystal in crystals]),
        formulas=[crystal.reduced_formula for crystal in crystals],
        splits=[""] * len(crystals),
        descriptions=[description.to_json() for description in descriptions],
        canonical_texts=[""] * len(crystals),
        targets=targets,
    )


def random_crystal(rng: np.random.Generator) -> Crystal:
    """3 to 8 atoms on a grid whose points are 4 Å apart, so that one taken out leaves another such crystal"""
    grid = np.array(list(itertools.product((0.0, 0.5), repeat=3)))
    chosen = rng.permutation(8)[: rng.integers(3, 9)]
    numbers = [ATOMIC_NUMBERS[SPECIES[k]] for k in rng.integers(0, 4, len(chosen))]
    return Crystal(np.eye(3) * 8.0, grid[chosen], np.array(numbers))


def sentence(kind: str, atoms: tuple[int, ...] = (), /, **facts: str) -> Sentence:
    return Sentence(word(kind, facts), "local" if kind == "site" else "global", kind, atoms, facts)


def random_description(rng: np.random.Generator, density: float) -> Description:
    """Of no crystal in particular: only `density` means anything"""

    def number(low: float, high: float) -> str:
        return f"{rng.uniform(low, high):.2f}"

    who = str(rng.choice(SPECIES))
    return Description(
        (
            sentence("electronegativity", difference=number(0, 3)),
            sentence("density", density=f"{density:.2f}", volume=number(8, 30)),
            sentence("cell", setting="conventional", lengths=f"a = {number(3, 9)} Å"),
            sentence("site", (0,), who=who, neighbours="6 neighbours", bonds=f"6 Cl at {number(2, 3)} Å"),
            sentence("site", (1,), who="Cl", neighbours="6 neighbours", bonds=f"6 {who} at {number(2, 3)} Å"),
        )
    )


@pytest.fixture(scope="module")
def samples() -> SampleSet:
    """What the texts tell and what the crystals show have nothing to do with each other."""
    rng = np.random.default_rng(0)
    crystals = [random_crystal(rng) for _ in range(N_TRAIN + N_NEW)]
    densities = rng.uniform(1, 9, len(crystals)).round(2)
    oxygen = np.array([(crystal.atomic_numbers == 8).mean() for crystal in crystals])
    texts = [random_description(rng, density) for density in densities]
    return sample_set(crystals, texts, **{TOLD: densities / 10, SEEN: oxygen})


def trained(samples: SampleSet, config: PredictorConfig, target: str, steps: int, rate: float) -> Predictor:
    torch.manual_seed(0)
    labels = samples.labels([target])
    model = build_predictor(config, [Target(target, float(labels.mean()), float(labels.std()))]).train()
    maker = BatchMaker(samples, model.encoders_by_modality(), [target])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        loss = model.loss(maker.batch(rng.integers(0, N_TRAIN, 32), LoaderConfig(), rng))
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()
        schedule.step()
    return Predictor(model)


def config(fusion: str = "gated", structure: bool = True, text: bool = True) -> PredictorConfig:
    head = HeadConfig(fusion, width=32, modality_dropout=0.2)  # type: ignore[arg-type]
    return PredictorConfig(STRUCTURE if structure else None, WORDS if text else None, head)


@pytest.fixture(scope="module")
def reader(samples: SampleSet) -> Predictor:
    """Has both modalities, and was taught what a sentence says."""
    return trained(samples, config(), TOLD, 260, 5e-3)


@pytest.fixture(scope="module")
def viewer(samples: SampleSet) -> Predictor:
    """Has both modalities, and was taught the share of oxygen among the atoms."""
    return trained(samples, config(), SEEN, 110, 8e-3)


def untrained(fusion: str = "cross_attention", **parts: bool) -> Predictor:
    torch.manual_seed(1)
    model = build_predictor(
        config(fusion, **parts), [Target("gap_ev", 1.0, 2.0), Target("heat_ev_per_atom", -1.0, 3.0)]
    )
    for parameter in model.missing.values():
        torch.nn.init.normal_(parameter)
    return Predictor(model)


@pytest.fixture(scope="module")
def told(reader: Predictor, samples: SampleSet) -> list[Explanation]:
    return [explain(reader, samples, index, TOLD) for index in NEW]


@pytest.fixture(scope="module")
def seen(viewer: Predictor, samples: SampleSet) -> list[Explanation]:
    return [explain(viewer, samples, index, SEEN) for index in NEW]


# ---------------------------------------------------------------- where the answer is known


def test_the_sentence_that_tells_is_singled_out(told: list[Explanation], samples: SampleSet) -> None:
    found = told
    truth = samples.targets[TOLD][list(NEW)]
    values = np.array([one.value for one in found])
    assert np.abs(values - truth).mean() < 0.15 * truth.std()  # or there would be nothing to explain
    changes = np.array([one.sentence_changes for one in found])  # (n, 5)
    others = np.delete(changes, DENSITY, axis=1)
    # Without its sentence every sample gets one and the same value: the change is all that set it apart
    blind = values + changes[:, DENSITY]
    assert blind.std() < 0.2 * truth.std()
    assert np.abs(others).max() < 0.35 * truth.std()
    far = np.abs(values - blind.mean()) > truth.std() / 2
    assert far.sum() > 4
    assert (np.abs(changes[far]).argmax(axis=1) == DENSITY).all()
    assert (np.abs(others[far]).max(axis=1) < 0.25 * np.abs(changes[far, DENSITY])).all()
    # The density's sentence is global
    scopes = np.array([[one.scope_changes["global"], one.scope_changes["local"]] for one in found])
    assert (values + scopes[:, 0]).std() < 0.2 * truth.std()
    assert np.abs(scopes[:, 1]).max() < 0.2 * truth.std()
    # The atoms had no say
    hidden = np.concatenate([np.r_[one.atom_changes.silenced, one.atom_changes.removed] for one in found])
    assert np.abs(hidden).max() < 0.1 * truth.std()


def test_a_sentence_is_singled_out_where_there_is_no_structure(reader: Predictor, samples: SampleSet) -> None:
    some = samples.some(np.array(NEW))
    texts = replace(some, n_atoms=np.zeros(N_NEW, int), frac_coords=np.zeros((0, 3)), atomic_numbers=np.zeros(0, int))
    found = [explain(reader, texts, index, TOLD) for index in range(N_NEW)]
    assert {one.branch for one in found} == {"text"} and {one.crystal for one in found} == {None}
    values = np.array([one.value for one in found])
    changes = np.array([one.sentence_changes for one in found])
    blind = values + changes[:, DENSITY]
    assert blind.std() < 0.2 * values.std()
    assert np.abs(np.delete(changes, DENSITY, axis=1)).max() < 0.35 * values.std()
    assert found[0].modalities is None and "modalities: the sample has no structure" in found[0].notes


def test_the_atoms_of_one_species_are_singled_out(seen: list[Explanation]) -> None:
    """The share s of n atoms without one of the species is s + (s - 1) / (n - 1), without another s + s / (n - 1)."""
    n_checked = 0
    for one in seen:
        assert one.crystal is not None
        is_oxygen, n = one.crystal.atomic_numbers == 8, one.crystal.n_atoms
        share = is_oxygen.mean()
        assert one.value == pytest.approx(share, abs=0.03)
        assert np.abs(one.sentence_changes).max() < 0.01
        if share == 0:
            continue
        expected = np.where(is_oxygen, share - 1, share) / (n - 1)
        met = share + expected <= 0.5  # hardly a crystal of training has more
        for changes in (one.atom_changes.removed, one.atom_changes.silenced):
            np.testing.assert_allclose(changes[met], expected[met], atol=0.04)
            assert ((changes < 0) == is_oxygen).all()
        n_checked += met.sum()
        for k, site in enumerate(one.sites):
            rest = np.delete(is_oxygen, site.atoms)
            if len(rest) > 2 and rest.mean() <= 0.5:
                assert one.site_changes.removed[k] == pytest.approx(rest.mean() - share, abs=0.06)
                assert one.site_changes.silenced[k] == pytest.approx(rest.mean() - share, abs=0.06)
    assert n_checked > 30


@pytest.mark.parametrize(("taught", "other"), [("text", "structure"), ("structure", "text")])
def test_the_modality_that_was_taught_has_the_contribution(
    request: pytest.FixtureRequest, samples: SampleSet, taught: str, other: str
) -> None:
    found: list[Explanation] = request.getfixturevalue("told" if taught == "text" else "seen")
    target = TOLD if taught == "text" else SEEN
    truth = samples.targets[target][list(NEW)]
    modalities = [one.modalities for one in found if one.modalities is not None]
    assert len(modalities) == N_NEW
    contributions = {name: np.array([m.contributions()[name] for m in modalities]) for name in ("structure", "text")}  # type: ignore[index]
    assert np.corrcoef(contributions[taught], truth)[0, 1] > 0.97
    assert 0.85 < contributions[taught].std() / truth.std() < 1.15
    assert contributions[other].std() < 0.2 * truth.std()
    assert np.abs(contributions[other]).max() < 0.4 * truth.std()
    without = {name: np.array([getattr(m, f"without_{name}") for m in modalities]) for name in contributions}
    assert np.abs(without[other] - truth).mean() < 0.15 * truth.std()  # the other one is not missed
    assert without[taught].std() < 0.25 * truth.std()
    alone = {name: np.array([getattr(m, f"{name}_alone") for m in modalities]) for name in contributions}
    assert np.abs(alone[taught] - truth).mean() < 0.15 * truth.std()
    assert np.corrcoef(alone[other], truth)[0, 1] < 0.6


# ---------------------------------------------------------------- numbers that can be had in two ways


def test_shapley_values_by_hand() -> None:
    values = ModalityValues(
        both=10.0, without_text=6.0, without_structure=3.0, without_both=1.0, structure_alone=0.0, text_alone=0.0
    )
    # structure first: 6 - 1, second: 10 - 3; text first: 3 - 1, second: 10 - 6
    assert values.contributions() == {"structure": 6.0, "text": 3.0}
    assert values.shared() == -2.0


@pytest.fixture(scope="module")
def rutile(root: Path) -> tuple[Crystal, SampleSet]:
    crystal, _ = parse_cif((root / "tests/cifs/rutile.cif").read_text())
    return crystal, sample_set([crystal], [describe(crystal)])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_changes_are_differences_of_predictions(rutile: tuple[Crystal, SampleSet], fusion: str) -> None:
    crystal, own = rutile
    predictor = untrained(fusion)
    found = explain(predictor, own, 0, "heat")
    assert found.target == "heat_ev_per_atom" and found.branch == "fused"
    description = describe(crystal)
    assert found.sentences == description.sentences

    def value(crystal: Crystal, description: Description, branch: Branch | None = None) -> float:
        return float(predictor.predict(sample_set([crystal], [description]), branch=branch).of(found.target)[0][0])

    full = value(crystal, description)
    assert found.value == pytest.approx(full, abs=1e-5)
    for k in range(len(description.sentences)):
        rest = Description(tuple(s for i, s in enumerate(description.sentences) if i != k))
        assert found.sentence_changes[k] == pytest.approx(value(crystal, rest) - full, abs=1e-5)
    for scope in ("global", "local"):
        rest = Description(tuple(s for s in description.sentences if s.scope != scope))
        assert found.scope_changes[scope] == pytest.approx(value(crystal, rest) - full, abs=1e-5)
    for k in range(crystal.n_atoms):
        rest_of_it = without_atoms(crystal, (k,))
        assert found.atom_changes.removed[k] == pytest.approx(value(rest_of_it, description) - full, abs=1e-5)
    assert [(site.name, len(site.atoms)) for site in found.sites] == [("Ti", 2), ("O", 4)]
    for site, removed in zip(found.sites, found.site_changes.removed, strict=True):
        rest_of_it = without_atoms(crystal, site.atoms)
        assert removed == pytest.approx(value(rest_of_it, description) - full, abs=1e-5)
    assert found.modalities is not None
    assert found.modalities.both == pytest.approx(full, abs=1e-5)
    assert found.modalities.structure_alone == pytest.approx(value(crystal, description, "structure"), abs=1e-5)
    assert found.modalities.text_alone == pytest.approx(value(crystal, description, "text"), abs=1e-5)
    contributions = found.modalities.contributions()
    assert sum(contributions.values()) == pytest.approx(full - found.modalities.without_both, abs=1e-5)
    assert np.abs(found.sentence_changes).min() > 1e-6  # nothing above was a comparison of zeros
    assert min(np.abs(changes).min() for changes in vars(found.atom_changes).values()) > 1e-6


def without_atoms(crystal: Crystal, atoms: tuple[int, ...]) -> Crystal:
    kept = np.delete(np.arange(crystal.n_atoms), atoms)
    return Crystal(crystal.lattice, crystal.frac_coords[kept], crystal.atomic_numbers[kept])


def test_a_silenced_atom_is_out_of_the_mean_and_stays_a_neighbour(rutile: tuple[Crystal, SampleSet]) -> None:
    crystal, own = rutile
    predictor = untrained(text=False)
    found = explain(predictor, own, 0, "heat")
    model = predictor.model
    with torch.no_grad():
        tokens = model.bridges["structure"](model.encoders["structure"](batch_of(predictor, own)).tokens[0])

        def value(kept: list[int]) -> float:
            return float(model.heads["structure"](tokens[kept].mean(dim=0)[None]).mean[0, 1]) * 3 - 1

        everything = list(range(crystal.n_atoms))
        for k in everything:
            expected = value([i for i in everything if i != k]) - value(everything)
            assert found.atom_changes.silenced[k] == pytest.approx(expected, abs=1e-5)
    # Taken out, it is missed by its neighbours as well
    assert np.abs(found.atom_changes.removed - found.atom_changes.silenced).min() > 1e-3


def batch_of(predictor: Predictor, samples: SampleSet) -> Part:
    return BatchMaker(samples, predictor.model.encoders_by_modality()).batch(np.array([0])).parts["structure"]


def test_equivalent_atoms_and_other_orders_get_the_same(rutile: tuple[Crystal, SampleSet]) -> None:
    crystal, own = rutile
    predictor = untrained()
    found = explain(predictor, own, 0, "heat")
    for changes in (found.atom_changes.silenced, found.atom_changes.removed):
        for site in found.sites:
            np.testing.assert_allclose(changes[list(site.atoms)], changes[site.atoms[0]], atol=1e-4)
    order = np.array([5, 2, 0, 4, 1, 3])
    turned = Crystal(crystal.lattice, crystal.frac_coords[order] + 0.13, crystal.atomic_numbers[order])
    again = explain(predictor, sample_set([turned], [describe(crystal)]), 0, "heat")
    np.testing.assert_allclose(again.atom_changes.removed, found.atom_changes.removed[order], atol=1e-4)
    np.testing.assert_allclose(again.atom_changes.silenced, found.atom_changes.silenced[order], atol=1e-4)
    assert [site.name for site in again.sites] == ["O", "Ti"]
    assert found.attention is not None and again.attention is not None
    np.testing.assert_allclose(again.attention.atoms_to_words, found.attention.atoms_to_words[order], atol=1e-4)


def test_sites_are_numbered_where_an_element_has_several() -> None:
    numbers = [ATOMIC_NUMBERS[symbol] for symbol in ("O", "Na", "O")]
    crystal = Crystal(np.diag([4.0, 4.4, 5.1]), [[0, 0, 0.1], [0, 0, 0.5], [0.5, 0, 0.23]], np.array(numbers))  # type: ignore[arg-type]
    assert [(site.name, site.atoms) for site in find_sites(crystal)] == [("O1", (0,)), ("Na", (1,)), ("O2", (2,))]


# ---------------------------------------------------------------- attention


def test_attention_is_the_softmax_that_the_fusion_takes(rutile: tuple[Crystal, SampleSet]) -> None:
    """Worked out here from the weights, a head at a time, and summed by word and by sentence."""
    crystal, own = rutile
    predictor = untrained()
    found = explain(predictor, own, 0, "gap").attention
    assert found is not None
    model = predictor.model
    fusion = model.fusion
    assert isinstance(fusion, CrossAttention)
    text = str(describe(crystal))
    spans = tokenize(text)
    with torch.no_grad():
        batch = BatchMaker(own, model.encoders_by_modality()).batch(np.array([0]))
        tokens = {name: encoding.tokens[0] for name, encoding in model.encode(batch).items()}
        normed = {name: fusion.norms[k](tokens[name]) for k, name in enumerate(("structure", "text"))}
        shares = {}
        for layer, own_name, other in (
            (fusion.first_looks, "structure", "text"),
            (fusion.second_looks, "text", "structure"),
        ):
            q = layer.query(normed[own_name]).unflatten(1, (4, 8))
            keys = layer.key_value(normed[other])[:, :32].unflatten(1, (4, 8))
            heads = torch.einsum("ihd,jhd->hij", q, keys) / 8**0.5
            shares[own_name] = heads.softmax(dim=2).mean(dim=0).numpy()
    assert shares["structure"].shape == (6, len(spans.ids))
    first = describe(crystal).sentences[0].text  # TiO2 is a compound of 2 elements.
    assert found.words[:3] == ("TiO2", "compound", "2") and text.startswith(first)
    np.testing.assert_array_equal(found.tokens_of_word[:3], [3, 1, 1])  # Ti, O, 2; words such as "is" are no tokens
    assert {"4.59 Å", "1.98 Å."} < set(found.words) and not {"Å", "Å."} & set(found.words)
    np.testing.assert_allclose(found.atoms_to_words[:, 0], shares["structure"][:, :3].sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(found.words_to_atoms[0], shares["text"][:3].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.atoms_to_words.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found.words_to_atoms.sum(axis=1), 1, atol=1e-5)
    sentences = np.array(spans.sentences)
    n = len(describe(crystal).sentences)
    sites = find_sites(crystal)
    by_sentence, by_site = found.sites_to_sentences(sites, n), found.sentences_to_sites(sites, n)
    for k in range(n):
        here = sentences == k
        for row, site in enumerate(sites):
            atoms = list(site.atoms)
            expected = shares["structure"][np.ix_(atoms, here)].sum(axis=1).mean()
            assert by_sentence[row, k] == pytest.approx(expected, abs=1e-5)
            expected = shares["text"][np.ix_(here, atoms)].sum(axis=1).mean()
            assert by_site[k, row] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(found.even_shares(n), np.bincount(sentences) / len(sentences))


@pytest.mark.parametrize("fusion", ["sum", "concat", "gated"])
def test_fusions_of_means_have_no_attention_to_show(rutile: tuple[Crystal, SampleSet], fusion: str) -> None:
    found = explain(untrained(fusion), rutile[1], 0, "gap")
    assert found.attention is None
    assert any(f"attention: the {fusion} fusion takes means over atoms and over words" in note for note in found.notes)


# ---------------------------------------------------------------- what is missing, and what is wrong


def test_one_modality_alone(rutile: tuple[Crystal, SampleSet]) -> None:
    found = explain(untrained(text=False), rutile[1], 0, "gap")
    assert found.branch == "structure" and found.sentences == () and found.scope_changes == {}
    assert found.modalities is None and found.attention is None
    assert any("knows structure alone" in note for note in found.notes)
    whole = sample_set([random_silicon()], [describe(random_silicon())])
    only = explain(untrained(text=False), whole, 0, "gap")
    assert len(only.sites) == 1 and np.isnan(only.site_changes.removed).all()  # nothing would be left
    assert np.isnan(only.site_changes.silenced).all() and np.isfinite(only.atom_changes.removed).all()
    both = explain(untrained(), whole, 0, "gap")
    assert both.modalities is not None  # with a text, no atom at all is a missing structure
    missing = both.modalities.without_structure - both.modalities.both
    assert both.site_changes.removed[0] == pytest.approx(missing, abs=1e-5)
    assert both.site_changes.silenced[0] == pytest.approx(missing, abs=1e-5)
    text_only = explain(untrained(structure=False), whole, 0, "gap")
    assert text_only.branch == "text" and text_only.sites == () and np.isfinite(text_only.sentence_changes).all()


def random_silicon() -> Crystal:
    return Crystal(np.eye(3) * 4.0, np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.array([14, 14]))


def test_the_last_sentence_of_a_text_leaves_nothing(rutile: tuple[Crystal, SampleSet]) -> None:
    short = Description(describe(rutile[0]).sentences[:1])
    own = sample_set([rutile[0]], [short])
    alone = explain(untrained(structure=False), own, 0, "gap")
    assert np.isnan(alone.sentence_changes).all() and np.isnan(alone.scope_changes["global"])
    beside = explain(untrained(), own, 0, "gap")
    assert beside.modalities is not None
    expected = beside.modalities.without_text - beside.modalities.both
    assert beside.sentence_changes[0] == pytest.approx(expected, abs=1e-5)


def test_untrained_tokens_of_the_missing_are_pointed_out(rutile: tuple[Crystal, SampleSet]) -> None:
    predictor = untrained()
    predictor.model.config = replace(predictor.model.config, modality_dropout=0.0)
    assert any("trained without modality dropout" in note for note in explain(predictor, rutile[1], 0, "gap").notes)


def test_what_cannot_be_explained_is_named(rutile: tuple[Crystal, SampleSet]) -> None:
    _, own = rutile
    with pytest.raises(ValueError, match="no property 'hardness'; this predictor knows gap_ev, heat_ev_per_atom"):
        explain(untrained(), own, 0, "hardness")
    with pytest.raises(ValueError, match=r"made-0: no text \(description\); nothing to predict from"):
        explain(untrained(structure=False), replace(own, descriptions=[""]), 0, "gap")
