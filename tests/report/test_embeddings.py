"""Learned vectors: the right rows under the right labels, and tests by chance that know chance when they see it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from crystallm.data.shards import ShardError, ShardWriter, open_shards, write_meta
from crystallm.model.checkpoint import load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.report.embedding_pictures import figures_of, spread
from crystallm.report.embedding_tests import (
    element_family,
    element_tests,
    embedding_table,
    mantel,
    number_similarities,
    share_test,
    space_group_tests,
)
from crystallm.report.embeddings import (
    ClassVectors,
    class_vectors,
    count_structures,
    embedding_files,
    save_counts,
    training_counts,
    write_embeddings,
)
from crystallm.space_groups import space_group
from crystallm.train.synthetic import random_text
from tokenizer import CIFTokenizer
from tokenizer.elements import SYMBOLS

ELEMENTS = [s for s in SYMBOLS[:94] if s not in ("He", "Ne", "Ar", "Kr", "Po", "At", "Rn", "Fr", "Ra")]


def vectors_of(name: str, labels: list[str], values: list[float], vectors: np.ndarray) -> ClassVectors:
    unknown = np.full(len(labels), -1)
    return ClassVectors(name, tuple(labels), np.array(values, dtype=float), vectors.astype(np.float32), unknown)


def tiny(vocabulary: str) -> tuple[GPT, CIFTokenizer, dict]:
    tokenizer = CIFTokenizer(vocabulary)
    torch.manual_seed(0)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, number_hidden=8)
    model = GPT(config, token_spec(tokenizer, config.loss)).eval()
    return model, tokenizer, {**model_info(config, tokenizer), "path": "/nowhere", "model_hash": "0" * 64}


@pytest.mark.parametrize("vocabulary", ["cif", "crystallm_v1"])
def test_each_label_has_the_vector_of_its_token(vocabulary):
    model, tokenizer, _ = tiny(vocabulary)
    found = {vectors.name: vectors for vectors in class_vectors(model, tokenizer)}
    table = model.table().detach().numpy()
    samples = {
        "cif": [
            ("formula_element", "Na", "Na", 11),
            ("site_element", "Na", "\nNa", 11),
            ("length", "5.64", "5.64", 5.64),
            ("space_group", "Fm-3m", " Fm-3m", 225),
            ("coordinate", "0.250", " 0.250", 0.25),
            ("integer", "3", "3", 3),
        ],
        "crystallm_v1": [
            ("element", "Na", "Na", 11),
            ("space_group", "Fm-3m", "Fm-3m_sg", 225),
            ("digit", "3", "3", 3),
        ],
    }[vocabulary]
    assert {name for name, *_ in samples} <= set(found) and "keyword" not in found and "wyckoff" not in found
    for name, label, token, value in samples:
        at = found[name].labels.index(label)
        np.testing.assert_array_equal(found[name].vectors[at], table[tokenizer.id(token)])
        assert found[name].values[at] == pytest.approx(value)
        assert (np.diff(found[name].values) > 0).all()


def test_counts_are_of_structures_and_of_those_that_fit(tmp_path):
    tokenizer, rng = CIFTokenizer(), np.random.default_rng(0)
    texts = [random_text(rng) for _ in range(700)]
    sequences = [np.array(tokenizer.encode(text), dtype=np.uint16) for text in texts]
    with ShardWriter(tmp_path, "train") as writer:
        for k, ids in enumerate(sequences):
            writer.add(f"s{k}", ids)
    write_meta(tmp_path, {"vocabulary": "cif", "vocabulary_hash": tokenizer.hash, "counts": {"train": writer.counts()}})
    longest = int(np.median([len(ids) for ids in sequences]))
    counts = count_structures(open_shards(tmp_path, "train"), longest)
    for token in (tokenizer.id("data_"), tokenizer.id("O"), tokenizer.id(" 0.000"), tokenizer.id("\nO")):
        assert counts[token] == sum(token in ids for ids in sequences if len(ids) <= longest)

    model, _, info = tiny("cif")
    assert training_counts(model, tokenizer, info)[0] is None
    from_data, source = training_counts(model, tokenizer, info, tmp_path)
    assert source == str(tmp_path) and len(from_data) == tokenizer.vocab_size
    info["path"] = str(tmp_path)
    save_counts(tmp_path, from_data, tokenizer)
    beside, source = training_counts(model, tokenizer, info)
    assert source.endswith("token_counts.npz") and np.array_equal(beside, from_data)
    with pytest.raises(ShardError, match="counts of another vocabulary"):
        training_counts(model, CIFTokenizer("crystallm_v1"), info)


def test_rare_tokens_take_no_part():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4)).astype(np.float32)
    counts = np.array([100, 20, 19, 0, 50, 21])
    some = ClassVectors("element", ("H", "Li", "Be", "B", "C", "N"), np.arange(6.0), vectors, counts)
    assert some.met_labels() == ["H", "Li", "C", "N"]
    alone = vectors_of("element", ["H", "Li", "C", "N"], [1, 3, 6, 7], vectors[[0, 1, 4, 5]])
    np.testing.assert_allclose(some.similarity(), alone.similarity())
    assert some.nearest().max() < 4


def test_principal_components_are_those_of_the_covariance():
    rng = np.random.default_rng(1)
    some = vectors_of("element", ELEMENTS, list(range(len(ELEMENTS))), rng.normal(size=(len(ELEMENTS), 12)))
    components, shares = some.principal(2)
    values, axes = np.linalg.eigh(np.cov(some.directions.T))
    assert shares == pytest.approx(values[::-1][:2] / values.sum())
    expected = (some.directions - some.directions.mean(axis=0)) @ axes[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(components), np.abs(expected), atol=1e-9)


def test_share_of_nearest_neighbours_by_hand():
    place = np.array([0.0, 1.0, 3.0, 5.0])  # nearest: 1, 0, both 1 and 3, 2
    distance = np.abs(place[:, None] - place)
    labels = np.array(["a", "a", "b", "b"])
    test = share_test("x", distance, labels, 20_000, np.random.default_rng(0))
    assert test.value == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert test.by_chance == pytest.approx(1 / 3, abs=0.01)  # of the three others, one has the label
    assert test.p == pytest.approx(1 / 3, abs=0.02)  # pairs {0, 1}{2, 3} are one of three equally likely


def test_mantel_is_spearmans_correlation_plain_and_partial():
    rng = np.random.default_rng(0)
    x, y, z = (np.abs(v[:, None] - v) for v in np.round(rng.normal(size=(3, 12)), 1))
    above = np.triu_indices(12, 1)
    pairs = {"xy": (x, y), "xz": (x, z), "yz": (y, z)}
    r = {name: scipy.stats.spearmanr(a[above], b[above]).statistic for name, (a, b) in pairs.items()}
    assert mantel("", x, y, None, 9, rng).value == pytest.approx(r["xy"])
    partial = (r["xy"] - r["xz"] * r["yz"]) / np.sqrt((1 - r["xz"] ** 2) * (1 - r["yz"] ** 2))
    assert mantel("", x, y, z, 9, rng).value == pytest.approx(partial)
    assert mantel("", x, x, None, 99, rng).p == 0.01


def test_random_vectors_show_no_chemistry_and_planted_groups_do():
    rng = np.random.default_rng(0)
    numbers = [SYMBOLS.index(symbol) + 1 for symbol in ELEMENTS]
    random = vectors_of("element", ELEMENTS, numbers, rng.normal(size=(len(ELEMENTS), 32)))
    assert all(test.p > 0.02 for test in element_tests(random, 499) if "order in a formula alone" not in test.name)

    families = [element_family(symbol) for symbol in ELEMENTS]
    planted = np.array([[family == other for other in sorted(set(families))] for family in families], dtype=float)
    planted += 0.05 * rng.normal(size=planted.shape)
    tests = element_tests(vectors_of("element", ELEMENTS, numbers, planted), 499)
    alone = {"H", "Xe"}  # of their family among these elements
    assert tests[0].value == pytest.approx(1 - len(alone) / len(ELEMENTS), abs=0.02) and tests[0].p == 0.002


@pytest.mark.parametrize(
    ("symbol", "family"), [("H", "hydrogen"), ("Na", "1"), ("Fe", "8"), ("La", "lanthanide"), ("U", "actinide")]
)
def test_family_of_an_element(symbol, family):
    assert element_family(symbol) == family


def test_space_groups_by_system_centring_and_point_group():
    groups = [space_group(number) for number in range(1, 231)]
    symbols = [group.symbol for group in groups]
    systems = sorted({group.crystal_system for group in groups})
    rng = np.random.default_rng(0)
    planted = np.array([[group.crystal_system == system for system in systems] for group in groups], dtype=float)
    planted += 0.01 * rng.normal(size=planted.shape)
    by_name = {
        test.name.split("same ")[1]: test
        for test in space_group_tests(vectors_of("space_group", symbols, list(range(1, 231)), planted), 199)
    }
    assert by_name["crystal system"].value == 1 and by_name["crystal system"].p == 0.005
    # 32 point groups: the chance that another group drawn at random has one's own, from their sizes
    sizes = np.array(
        [1, 1, 3, 4, 6, 9, 22, 28, 6, 2, 6, 10, 12, 12, 20, 4, 2, 7, 6, 6, 6, 1, 2, 6, 4, 4, 4, 5, 7, 8, 6, 10]
    )
    assert sizes.sum() == 230 and len(sizes) == 32
    expected = (sizes * (sizes - 1)).sum() / (230 * 229)
    assert by_name["point group"].by_chance == pytest.approx(expected, abs=0.005)


def test_similarity_of_numbers_by_hand():
    angle = 2 * np.pi * np.arange(40) / 40  # a closed circle: the mean is zero, and steps have known cosines
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = [f"{value:.3f}" for value in np.arange(40) / 40]
    result = number_similarities(vectors_of("coordinate", labels, list(np.arange(40) / 40), circle))
    pairs = np.arange(1, 40) - np.arange(39)
    assert result["1_apart"] == pytest.approx(np.cos(2 * np.pi * pairs / 40).mean())
    assert result["10_apart"] == pytest.approx(0, abs=1e-6)
    mirrored = [np.cos(angle[40 - k] - angle[k]) for k in range(1, 40) if k != 20]
    assert result["x_and_1_minus_x"] == pytest.approx(np.mean(mirrored))
    assert result["all_pairs"] == pytest.approx(-1 / 39)  # unit vectors that add up to zero


def test_labels_that_are_spread_overlap_no_more():
    rng = np.random.default_rng(0)
    points = rng.normal(scale=40, size=(60, 2))
    moved = spread(points, 20, 10, rounds=1000)
    apart = np.abs(moved[:, None] - moved)
    overlap = ((apart[..., 0] < 19.9) & (apart[..., 1] < 9.9)).sum() - 60
    before = np.abs(points[:, None] - points)
    assert overlap == 0 < ((before[..., 0] < 19.9) & (before[..., 1] < 9.9)).sum() - 60
    assert np.array_equal(spread(points[:1], 20, 10), points[:1])


@pytest.mark.parametrize("vocabulary", [pytest.param("cif", marks=pytest.mark.slow), "crystallm_v1"])
def test_files_hold_what_the_model_holds(tmp_path: Path, vocabulary):
    model, tokenizer, info = tiny(vocabulary)
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    classes = tokenizer.vocabulary.classes
    for ids in classes.values():
        counts[ids[:60]] = 30
    counts[classes.get("property_value", [])] = 0
    save_counts(tmp_path, counts, tokenizer)
    summary = write_embeddings(model, tokenizer, info | {"path": str(tmp_path)}, tmp_path / "out", n_permutations=19)
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert set((tmp_path / "out").iterdir()) <= set(embedding_files(model, tokenizer, tmp_path / "out"))
    expected = {
        "cif": {"formula_element", "site_element", "space_group", "length", "angle", "coordinate", "integer"},
        "crystallm_v1": {"element", "space_group", "digit"},
    }[vocabulary]
    assert set(summary["classes"]) == expected
    table = model.table().detach().numpy()
    for name in expected:
        texts = [tokenizer.token(int(i)).strip().removesuffix("_sg") for i in classes[name]]
        with np.load(tmp_path / f"out/{name}.npz") as archive:
            token = int(classes[name][texts.index(archive["labels"][5])])
            np.testing.assert_array_equal(archive["vectors"][5], table[token])
            assert archive["n_structures"][5] == counts[token]
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    elements = {name for name in expected if "element" in name}
    wanted = [f"{name}{end}.png" for name in elements for end in ("_map", "_table")]
    assert pictures == sorted(wanted + [f"{name}.png" for name in expected - elements])
    name = min(elements)
    with (tmp_path / f"out/{name}.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["element", *map(str, range(16))] and len(rows) == summary["classes"][name]["n_met"] < 118
    assert "left out" in embedding_table(summary)


def test_chemistry_shows_in_the_bundled_model(root: Path):
    model, tokenizer, _ = load_checkpoint(root / "resources/model")
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for symbol in ELEMENTS:
        counts[[tokenizer.id(symbol), tokenizer.id(f"\n{symbol}")]] = 1000
    elements = {v.name: v for v in class_vectors(model, tokenizer, counts)}["formula_element"]
    labels, similarity = elements.met_labels(), elements.similarity()

    def cosine(a: str, b: str) -> float:
        return float(similarity[labels.index(a), labels.index(b)])

    assert min(cosine("K", "Rb"), cosine("Cl", "Br"), cosine("Fe", "Co"), cosine("Pr", "Nd")) > 0.2
    assert max(cosine("K", "Cl"), cosine("Br", "Fe"), cosine("Nd", "O")) < 0.1
    assert len(figures_of(elements)) == 2
