"""The predictor: branches, missing modalities, fusion, training, calibration and what it answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crystallm.cif_write import write_cif
from crystallm.config import ConfigError, load_config
from crystallm.crystal import Crystal
from crystallm.properties.calibration import calibrated_targets, coverage
from crystallm.properties.checkpoint import (
    PredictorConfig,
    TextConfig,
    build_predictor,
    export_predictor,
    load_predictor,
)
from crystallm.properties.fusion import FUSIONS
from crystallm.properties.loader import BatchMaker, LoaderConfig, PropertyLoader, cut_by_atoms
from crystallm.properties.prediction import Predictor
from crystallm.properties.predictor import HeadConfig, PropertyPredictor, Target
from crystallm.properties.samples import (
    SampleSet,
    Texts,
    make_samples,
    read_samples,
    read_split_file,
    split_at_random,
    write_samples,
    write_split_file,
)
from crystallm.properties.structure import StructureConfig
from crystallm.properties.tables import PropertyDataConfig, property_samples, sample_splits
from crystallm.records import CIFRecord
from crystallm.training.predictor import (
    PredictorRunConfig,
    linear_cka,
    modality_balance,
    train_predictor,
)

SMALL = StructureConfig(width=16, n_layer=1, n_head=2, cutoff_ang=4.0)
WORDS = TextConfig(width=16, n_layer=1, n_head=2)
TARGETS = (Target("heat_ev_per_atom", 1.0, 2.0), Target("band_gap_ev", 0.5, 1.5))
ELEMENTS = ("Li", "Na", "K", "Rb", "Cs")


def rock_salt(symbol: str, other: str, a: float) -> Crystal:
    return Crystal.from_parameters((a / 2**0.5,) * 3 + (60.0,) * 3, [[0, 0, 0], [0.5, 0.5, 0.5]], [symbol, other])


def records(n: int = 40) -> list[CIFRecord]:
    """Rock salts whose label is their edge, more or less: something that can be learnt"""
    rng = np.random.default_rng(0)
    made = []
    for k in range(n):
        a = float(rng.uniform(4.5, 7.0))
        crystal = rock_salt(ELEMENTS[k % 5], ("F", "Cl", "Br", "I")[k % 4], a)
        scores = {"heat_ev_per_atom": a} if k % 3 else {"band_gap_ev": 7 - a, "heat_ev_per_atom": a}
        made.append(CIFRecord(f"salt-{k}", write_cif(crystal), scores=scores))
    return made


@pytest.fixture(scope="module")
def samples() -> SampleSet:
    names = [target.name for target in TARGETS]
    made, rejected = make_samples(records(), names, Texts(description=True, canonical=True), workers=0)
    assert not rejected
    return made


def predictor(fusion: str = "gated", **head: Any) -> PropertyPredictor:
    torch.manual_seed(0)
    config = PredictorConfig(SMALL, WORDS, HeadConfig(fusion=fusion, width=16, **head))
    model = build_predictor(config, TARGETS)
    for parameter in model.missing.values():
        torch.nn.init.normal_(parameter)
    return model.eval()


# ---------------------------------------------------------------- samples


def test_samples_come_back_from_disk(samples: SampleSet, tmp_path: Path) -> None:
    write_samples(samples, tmp_path / "s.parquet")
    back = read_samples(tmp_path / "s.parquet")
    assert back.ids == samples.ids and back.descriptions == samples.descriptions
    assert back.canonical_texts == samples.canonical_texts and back.formulas == samples.formulas
    for index in (0, 17, 39):
        np.testing.assert_array_equal(back.crystal(index).frac_coords, samples.crystal(index).frac_coords)
        np.testing.assert_array_equal(back.crystal(index).lattice, samples.crystal(index).lattice)
    np.testing.assert_array_equal(back.labels(["band_gap_ev"]), samples.labels(["band_gap_ev"]))
    chosen = samples.some(np.array([5, 2]))
    assert chosen.ids == ["salt-5", "salt-2"]
    np.testing.assert_array_equal(chosen.crystal(1).atomic_numbers, samples.crystal(2).atomic_numbers)


def test_what_is_no_sample_is_named() -> None:
    [good] = records(1)
    rows = [good, CIFRecord("bad", "data_x\n"), replace(good, id="inf", scores={"heat_ev_per_atom": float("inf")})]
    made, rejected = make_samples(rows, ["heat_ev_per_atom"], workers=0)
    assert made.ids == ["salt-0"]
    assert [(one.place, one.id, one.rejected_by) for one in rejected] == [
        (1, "bad", "no_cell"),
        (2, "inf", "bad_label"),
    ]
    assert rejected[0].reason.startswith("block 'x': no value for _cell_length_a")
    assert "inf, wanted a finite number" in rejected[1].reason


def test_a_label_that_does_not_exist_is_named(samples: SampleSet) -> None:
    with pytest.raises(ValueError, match=r"no property 'gap'; the samples have heat_ev_per_atom, band_gap_ev"):
        samples.labels(["gap"])


def test_splits_keep_formulas_together_and_know_no_order() -> None:
    keys = [f"f{k % 30}" for k in range(300)]
    splits = split_at_random(keys, seed=3)
    of = dict(zip(keys, splits, strict=True))
    assert all(of[key] == split for key, split in zip(keys, splits, strict=True))
    assert 0.7 < splits.count("train") / 300 < 0.9 and set(splits) == {"train", "val", "test"}
    assert split_at_random(keys[::-1], seed=3) == splits[::-1]
    assert split_at_random(keys, seed=4) != splits


def test_split_files(tmp_path: Path) -> None:
    write_split_file(tmp_path / "s.csv.gz", {"b,1": "val", "a": "train"})
    assert read_split_file(tmp_path / "s.csv.gz") == {"a": "train", "b,1": "val"}
    (tmp_path / "bad.csv").write_text("id,split\nx,train\ny,dev\n")
    with pytest.raises(ValueError, match="line 3: got 'y,dev'"):
        read_split_file(tmp_path / "bad.csv")


def test_held_out_formulas_are_not_trained_on(samples: SampleSet, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"reduced_formula": [samples.formulas[0], samples.formulas[1]], "split": ["test", "train"]}
    pq.write_table(pa.table(table), tmp_path / "held.parquet")
    splits = sample_splits(samples, PropertyDataConfig(exclude=(str(tmp_path / "held.parquet"),)))
    formulas = np.array(samples.formulas)
    assert not (splits[formulas == samples.formulas[0]] == "train").any()
    assert (splits[formulas == samples.formulas[1]] == "train").any()


def test_rows_that_a_split_file_does_not_name(samples: SampleSet, tmp_path: Path) -> None:
    write_split_file(tmp_path / "split.csv.gz", {samples.ids[0]: "test", samples.ids[1]: "val"})
    for trained_on, others in ((True, "train"), (False, "")):
        data = PropertyDataConfig(split=str(tmp_path / "split.csv.gz"), train_on_unlisted=trained_on)
        assert sample_splits(samples, data).tolist() == ["test", "val", *[others] * 38]


# ---------------------------------------------------------------- model


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_hears_both_modalities(samples: SampleSet, fusion: str) -> None:
    model = predictor(fusion)
    batch = BatchMaker(samples, model.encoders_by_modality()).batch(np.arange(6))
    found = modality_balance(model, replace(batch, targets=torch.tensor(samples.labels([t.name for t in TARGETS])[:6])))
    assert found["gradient_structure"] > 1e-4 and found["gradient_text"] > 1e-4
    assert 0 <= found["alignment"] <= 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_sample_answers_alone_as_in_a_batch(samples: SampleSet, fusion: str) -> None:
    found = Predictor(predictor(fusion))
    together = found.predict(samples)
    for index in (0, 13):
        alone = found.predict(samples.some(np.array([index])))
        np.testing.assert_allclose(alone.values[0], together.values[index], atol=1e-5)
        np.testing.assert_allclose(alone.errors[0], together.errors[index], atol=1e-5)


def test_a_missing_modality_is_the_single_branch(samples: SampleSet) -> None:
    found = Predictor(predictor())
    both, no_text = found.predict(samples), found.predict(samples, without=["text"])
    no_structure = found.predict(samples, without=["structure"])
    assert set(both.branches) == {"fused"} and set(no_text.branches) == {"structure"}
    assert set(no_structure.branches) == {"text"}
    np.testing.assert_allclose(no_text.values, found.predict(samples, branch="structure").values, atol=1e-5)
    some = replace(samples, descriptions=["", *samples.descriptions[1:]])
    mixed = found.predict(some)
    assert mixed.branches[0] == "structure" and mixed.branches[1] == "fused"
    np.testing.assert_allclose(mixed.values[0], no_text.values[0], atol=1e-5)
    np.testing.assert_allclose(mixed.values[1:], both.values[1:], atol=1e-5)
    with pytest.raises(ValueError, match="nothing to predict from"):
        found.predict(samples, without=["structure", "text"])


def test_gaps_are_not_negative_whatever_their_source(samples: SampleSet) -> None:
    targets = [Target("mp20_band_gap_ev", mean=-5.0), Target("heat_ev_per_atom", mean=-5.0)]
    found = Predictor(build_predictor(PredictorConfig(SMALL, None, HeadConfig(width=16)), targets)).predict(samples)
    assert (found.values[:, 0] == 0).all() and (found.values[:, 1] < 0).all()


def test_missing_labels_teach_nothing(samples: SampleSet) -> None:
    model = predictor()
    maker = BatchMaker(samples, model.encoders_by_modality(), [t.name for t in TARGETS])
    batch = maker.batch(np.array([1, 2]))  # rows without a band gap
    model.loss(batch).total.backward()
    last = model.heads["fused"].value[-1].weight.grad  # type: ignore[union-attr, index]
    assert last is not None and last[0].abs().max() > 0 and last[1].abs().max() == 0


def test_one_encoder_is_a_model_too(samples: SampleSet) -> None:
    model = build_predictor(PredictorConfig(SMALL, None, HeadConfig(width=16)), TARGETS)
    assert model.branches == ("structure",)
    assert set(Predictor(model).predict(samples).branches) == {"structure"}
    with pytest.raises(ValueError, match="know nothing of a crystal"):
        PredictorConfig(None, None)


def test_groups_hold_what_they_may() -> None:
    sizes = np.array([5, 1, 3, 90, 2, 2, 8])
    groups = cut_by_atoms(np.arange(7), sizes, 12, 3)
    assert sorted(np.concatenate(groups).tolist()) == list(range(7))
    assert all(len(g) <= 3 and (len(g) == 1 or len(g) * sizes[g].max() <= 12) for g in groups)


def test_loader_repeats_and_goes_on_where_it_stood(samples: SampleSet) -> None:
    encoders = predictor().encoders_by_modality()
    config = LoaderConfig(batch_samples=7)

    def loader() -> PropertyLoader:
        return PropertyLoader(samples, np.arange(40), encoders, ["heat_ev_per_atom"], config, seed=5)

    first = [batch.targets for batch in loader().take(12)]
    again = loader()
    half = [batch.targets for batch in again.take(5)]
    resumed = loader()
    resumed.state = again.state
    rest = [batch.targets for batch in resumed.take(7)]
    assert all(torch.equal(a, b) for a, b in zip(first, half + rest, strict=True))
    assert sum(len(batch.targets) for batch in loader().once()) == 40


def test_a_share_of_the_batches_goes_without_texts(samples: SampleSet) -> None:
    names = [target.name for target in TARGETS]
    model = predictor()
    encoders = model.encoders_by_modality()
    loader = PropertyLoader(samples, np.arange(40), encoders, names, LoaderConfig(batch_samples=4, text_share=0.4))
    batches = list(loader.take(100))
    with_texts = [batch for batch in batches if "text" in batch.parts]
    assert 25 <= len(with_texts) <= 55
    assert all(batch.present["text"].all() for batch in with_texts)
    without = next(batch for batch in batches if "text" not in batch.parts)
    assert without.present["structure"].all() and not without.present["text"].any()
    loss = model.loss(without)
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in encoders["text"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in encoders["structure"].parameters())
    assert all("text" in batch.parts for batch in loader.once()), "whole, where nothing is trained"


def test_a_sample_without_structure_keeps_its_text(samples: SampleSet) -> None:
    atoms = np.arange(samples.starts[1], samples.starts[-1])
    bare = replace(
        samples,
        n_atoms=np.where(np.arange(40) == 0, 0, samples.n_atoms),
        frac_coords=samples.frac_coords[atoms],
        atomic_numbers=samples.atomic_numbers[atoms],
    )
    maker = BatchMaker(bare, predictor().encoders_by_modality())
    drawn = [maker.batch(np.arange(3), LoaderConfig(text_share=0.01), np.random.default_rng(k)) for k in range(5)]
    assert all(batch.present["text"].tolist() == [True, False, False] for batch in drawn)
    assert all(batch.present["structure"].tolist() == [False, True, True] for batch in drawn)


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_of_texts_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=rf"text_share must be in \(0, 1\], got {share}"):
        LoaderConfig(text_share=share)


def test_samples_without_any_label_are_refused(samples: SampleSet) -> None:
    empty = replace(samples, targets={"heat_ev_per_atom": np.full(40, np.nan)})
    with pytest.raises(ValueError, match="none of 40 samples can be used: 40 have no label"):
        PropertyLoader(empty, np.arange(40), {}, ["heat_ev_per_atom"], LoaderConfig())


# ---------------------------------------------------------------- calibration and diagnostics


def test_calibration_makes_errors_as_large_as_they_are(samples: SampleSet) -> None:
    model = predictor()
    model.targets = tuple(calibrated_targets(model, samples))
    found = Predictor(model).predict(samples)
    labels = samples.labels(found.targets)
    for place in range(2):
        known = np.isfinite(labels[:, place])
        errors = np.abs(found.values - labels)[known, place]
        assert errors.mean() == pytest.approx(found.errors[known, place].mean(), rel=1e-4)
    assert set(model.targets[0].error_factors) == {"fused", "structure", "text"}


def test_coverage_of_laplace_errors() -> None:
    rng = np.random.default_rng(0)
    widths = rng.uniform(0.1, 2, 20_000)
    errors = np.abs(rng.laplace(scale=widths))
    np.testing.assert_allclose(coverage(errors, widths, (0.2, 0.5, 0.9)), (0.2, 0.5, 0.9), atol=0.02)
    assert coverage(errors, widths / 2, (0.5,))[0] < 0.4


def test_alignment_is_one_for_turned_and_small_for_unrelated() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    q, _ = torch.linalg.qr(torch.randn(6, 6))
    assert linear_cka(x, x @ q) == pytest.approx(1)
    assert linear_cka(x, torch.randn(500, 6)) < 0.1


# ---------------------------------------------------------------- training


def write_table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = records(60)
    rows = {"material_id": [r.id for r in made], "cif": [r.cif for r in made]}
    pq.write_table(pa.table(rows | {"heat": [r.scores["heat_ev_per_atom"] for r in made]}), path)


def run_config(tmp_path: Path, *arguments: str) -> PredictorRunConfig:
    write_table(tmp_path / "t.parquet")
    given = [f"out={tmp_path / 'run'}", f"data.path=[{tmp_path / 't.parquet'}]", f"data.cache={tmp_path / 'cache'}"]
    given += ["data.targets.heat=heat_ev_per_atom", "data.workers=0", "data.loader.batch_samples=16"]
    given += ["predictor.structure.width=16", "predictor.structure.n_layer=1", "predictor.structure.n_head=2"]
    given += ["predictor.text.width=16", "predictor.text.n_layer=1", "predictor.text.n_head=2"]
    given += ["train.max_steps=150", "train.eval_every=50", "train.warmup_steps=10", "train.learning_rate=5e-3"]
    given += ["train.threads=1", "train.dtype=float32", "predictor.head.width=16"]
    return load_config(PredictorRunConfig, [*given, *arguments])


def test_training_learns_calibrates_and_comes_back(tmp_path: Path) -> None:
    assert train_predictor(run_config(tmp_path)) == "finished"
    found = Predictor.load(tmp_path / "run")
    made = records(60)
    scored = found.score(made)
    values = np.array([record.scores["predicted_heat_ev_per_atom"] for record in scored])
    truth = np.array([record.scores["heat_ev_per_atom"] for record in made])
    assert np.abs(values - truth).mean() < 0.5 * np.abs(truth - truth.mean()).mean()
    assert found.model.targets[0].error_factors.keys() == {"fused", "structure", "text"}
    splits = read_split_file(tmp_path / "run/split.csv.gz")
    assert sorted(splits.values()).count("train") == 48 and len(splits) == 60
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "val"][-1]
    assert {"gradient_structure", "gradient_text", "alignment", "error_text", "heat_ev_per_atom"} <= last.keys()
    export_predictor(tmp_path / "run", tmp_path / "exported")
    small = Predictor.load(tmp_path / "exported").score(made)
    shift = [a.scores["predicted_heat_ev_per_atom"] - b for a, b in zip(small, values, strict=True)]
    assert np.abs(shift).max() < 0.02


def test_a_finished_run_goes_on(tmp_path: Path) -> None:
    """Though its errors were calibrated since"""
    assert train_predictor(run_config(tmp_path, "train.max_steps=4")) == "finished"
    first = Predictor.load(tmp_path / "run/last").model.targets
    assert first[0].error_factors
    assert train_predictor(run_config(tmp_path, "train.max_steps=6")) == "finished"
    assert load_predictor(tmp_path / "run/last")[2]["training"]["step"] == 6
    with pytest.raises(ValueError, match=r"is of another run: targets\.0\.mean was"):
        train_predictor(run_config(tmp_path, "train.max_steps=6", "data.max_train=10"))


def test_broken_and_large_records_stay_with_a_reason(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = Predictor(predictor())
    [good, other] = records(2)
    large = Crystal(np.eye(3) * 19.0, np.random.default_rng(0).random((501, 3)), np.full(501, 6))
    given = [
        good,
        CIFRecord("bad", "no cif"),
        CIFRecord("large", "", crystal=large),
        replace(other, rejected_by="bonds"),
    ]
    scored = found.score(given)
    assert [record.rejected_by for record in scored] == [None, "syntax", "too_large", "bonds"]
    assert scored[2].reason == "501 atoms in the cell, wanted 1 to 500"
    assert "predicted_band_gap_ev_error" in scored[0].scores and "predicted_band_gap_ev" in scored[3].scores
    assert scored[0].scores["predicted_band_gap_ev"] >= 0


def test_a_changed_table_is_read_anew_and_infinite_labels_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = run_config(tmp_path).data
    samples, rejected = property_samples(data, Texts())
    assert len(samples) == 60 and not rejected and len(list((tmp_path / "cache").iterdir())) == 2
    assert property_samples(data, Texts())[0].ids == samples.ids and len(list((tmp_path / "cache").iterdir())) == 2
    table = pq.read_table(tmp_path / "t.parquet").to_pydict()
    table["heat"][:3] = [float("inf"), float("nan"), 7.5]
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    again, rejected = property_samples(data, Texts())
    assert len(again) == 58 and again.targets["heat_ev_per_atom"][0] == 7.5
    assert [one.id for one in rejected] == ["salt-0"] and "inf, wanted a finite number" in rejected[0].reason


def test_wrong_settings_and_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder wants text\.name"):
        run_config(tmp_path, "predictor.text.encoder=decoder")
    with pytest.raises(ConfigError, match="fusion"):
        run_config(tmp_path, "predictor.head.fusion=add")
    with pytest.raises(ValueError, match="no row has a label in gap"):
        train_predictor(
            replace(run_config(tmp_path), data=replace(run_config(tmp_path).data, targets={"gap": "gap_ev"}))
        )
    with pytest.raises(ValueError, match="targets names no column"):
        train_predictor(replace(run_config(tmp_path), data=replace(run_config(tmp_path).data, targets={})))
    with pytest.raises(ValueError, match="split=column wants split_column"):
        PropertyDataConfig(split="column")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not a property predictor"):
        load_predictor(folder)
    with pytest.raises(ValueError, match=r"no property 'hardness'; this predictor knows heat_ev_per_atom, band_gap_ev"):
        Predictor(predictor()).target("hardness")
    assert Predictor(predictor()).target("band_gap").name == "band_gap_ev"
