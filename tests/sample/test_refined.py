from __future__ import annotations

import csv
import json
import runpy
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crystallm import canonicalize
from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.checks.filter import FilterConfig, run_filter
from crystallm.cif import parse_cif
from crystallm.cif_write import write_cif
from crystallm.config import to_dict
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord, read_records, write_records
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.records import ADVANTAGE, RefineConfig, refine_records
from crystallm.sample.generate import GenerateConfig, Generator, generate
from crystallm.sample.refined import load, refine_checked
from crystallm.sample.report import Tally

RUTILE = """data_TiO2
_crystallm_primitive_formula_units 2
_symmetry_space_group_name_H-M P4_2/mnm
_cell_length_a 4.59
_cell_length_b 4.59
_cell_length_c 2.96
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 90.0
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Ti a 0.000 0.000 0.000
O f 0.305 0.305 0.000
"""


class Towards(CrystalDiffusionModel):
    """Knows where the oxygens of rutile belong: at `u`."""

    def __init__(self, u: float):
        super().__init__(hidden_dim=8, num_layers=1, timesteps=4)
        self.u = u

    def refine(self, crystals, orbits, *settings):  # type: ignore[no-untyped-def,override]
        unit = AsymmetricUnit.from_text(RUTILE.replace("0.305", f"{self.u:.3f}"))
        target = unit.to_crystal()
        assert all(orbit.n_free.max() == 1 for orbit in orbits)
        results = []
        for crystal in crystals:
            delta = target.frac_coords[None] - crystal.frac_coords[:, None]
            delta = delta - np.rint(delta)
            other = target.atomic_numbers[None] != crystal.atomic_numbers[:, None]
            nearest = (np.abs(delta).sum(-1) + 9 * other).argmin(axis=1)
            frac = crystal.frac_coords + delta[np.arange(6), nearest]
            results.append(Crystal(crystal.lattice, frac, crystal.atomic_numbers))
        return results


def record(text: str = RUTILE, **more: object) -> CIFRecord:
    return CIFRecord("one", write_cif(AsymmetricUnit.from_text(text)), text=text, **more)  # type: ignore[arg-type]


def test_a_refined_record_says_what_was_done():
    (out,) = refine_records([record()], Towards(0.311), RefineConfig(0.15, 3, free_cell=False), "abc")
    assert "O f 0.311 0.311 0.000" in out.text and "0.31100000 0.31100000 0.00000000" in out.cif
    assert out.provenance["refined"] == {"model_hash": "abc", "sigma_ang": 0.15, "num_steps": 3, "free_cell": False}
    # Four of six atoms moved by 0.006 sqrt(2) 4.59 Å
    assert out.scores["refined_by_ang"] == pytest.approx(0.006 * 2**0.5 * 4.59 * (4 / 6) ** 0.5, rel=1e-4)
    assert out.structure.get_space_group_info()[1] == 136


def test_nothing_is_lost_and_order_is_kept():
    without = [CIFRecord("text", "no CIF at all", text=""), record(rejected_by="dead_end", reason="stuck")]
    without[1] = CIFRecord("cut", "data_TiO2", text="data_TiO2", rejected_by="dead_end", reason="stuck")
    foreign = CIFRecord("foreign", write_cif(AsymmetricUnit.from_text(RUTILE).to_crystal()))
    out = list(refine_records([without[0], record(), without[1], foreign], Towards(0.311), RefineConfig()))
    assert [one.id for one in out] == ["text", "one", "cut", "foreign"]
    assert out[0] is without[0] and out[2] is without[1]
    assert "O f 0.311" in out[3].text  # a P1 CIF of another program: its group was found


def test_what_gets_worse_stays_and_what_gets_better_is_taken():
    checks = FilterConfig("default")
    good, _ = run_filter([record()], checks)
    close, _ = run_filter([record(RUTILE.replace("0.305", "0.080"))], checks)
    assert good[0].rejected_by is None and close[0].rejected_by == "distance"
    (kept,) = refine_checked(good, Towards(0.080), RefineConfig(), checks)
    assert kept.rejected_by is None and kept.text == RUTILE
    assert kept.provenance["refined"]["failed"].startswith("distance: ")
    (mended,) = refine_checked(close, Towards(0.305), RefineConfig(), checks)
    assert mended.rejected_by is None and mended.text == RUTILE
    assert mended.provenance["refined"]["mended"] == "distance"
    (again,) = refine_checked([replace(good[0], rejected_by="duplicate")], Towards(0.311), RefineConfig(), checks)
    assert again.rejected_by == "duplicate" and again.text == RUTILE
    (taken,) = refine_checked(good, Towards(0.311), RefineConfig(), checks)
    assert Tally([kept, mended, taken]).summary() == (
        "kept 3 of 3\nrefined 2 (1 of them rejected before); "
        "1 kept as they were, since the refined crystal failed a check:\n"
        f"  1 {kept.provenance['refined']['failed']} ({kept.id})"
    )


def test_a_real_network_keeps_the_group():
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=16, num_layers=2, timesteps=10)
    (out,) = refine_records([record()], model, RefineConfig(0.3, num_steps=4))
    assert out.text != RUTILE and out.structure.get_space_group_info()[1] == 136


def test_a_shaken_crystal_of_ones_own_gets_the_group_that_it_comes_back_to(root: Path):
    """A text's group was asked for, so it stays; a CIF that lists all its atoms asks for none."""
    model, _ = load(device="cpu")
    ideal = CIFRecord("rutile", (root / "tests/cifs/rutile.cif").read_text())
    crystal = parse_cif(ideal.cif)[0]
    shift = np.random.default_rng(0).normal(size=crystal.frac_coords.shape) * 0.09 @ np.linalg.inv(crystal.lattice)
    shaken = CIFRecord.of(Crystal(crystal.lattice, crystal.frac_coords + shift, crystal.atomic_numbers), "shaken")
    checks = FilterConfig("default")
    checked, _ = run_filter([shaken], checks)
    (back,) = refine_checked(checked, model, RefineConfig(), checks)
    assert back.rejected_by is None and back.provenance["refined"]["space_group_before"] == "P1"
    assert "H-M P4_2/mnm" in back.text and back.structure.get_space_group_info()[1] == 136
    texts = replace(shaken, cif="", text=canonicalize(shaken.cif))
    checked, _ = run_filter([replace(texts, cif=shaken.cif)], checks)
    (kept,) = refine_checked(checked, model, RefineConfig(), checks)
    assert kept.provenance["refined"]["failed"].startswith("space_group: P1 (1) is stated, P4_2/mnm (136) is found")
    (freed,) = refine_checked(checked, model, RefineConfig(free_symmetry=1), checks)
    assert freed.rejected_by is None and "H-M P4_2/mnm" in freed.text
    assert freed.provenance["refined"]["space_group_before"] == "P1"


class Polar(CrystalDiffusionModel):
    """Moves titanium along c where nothing holds it, and thinks so much the better of the crystal."""

    def __init__(self, better_by: float):
        super().__init__(hidden_dim=8, num_layers=1, timesteps=4)
        self.better_by = better_by

    def refine(self, crystals, orbits, *settings):  # type: ignore[no-untyped-def,override]
        if orbits is not None:
            return list(crystals)
        moves = [np.where(one.atomic_numbers[:, None] == 22, [[0, 0, 0.05]], 0) for one in crystals]
        return [replace(one, frac_coords=one.frac_coords + move) for one, move in zip(crystals, moves, strict=True)]

    def denoising_errors(self, crystals, *settings):  # type: ignore[no-untyped-def,override]
        off = [abs(one.frac_coords[one.atomic_numbers == 22, 2] - 0.5).max() > 0.01 for one in crystals]
        return 0.5 - self.better_by * np.array(off)


def test_a_crystal_distorts_where_that_is_better_by_enough(root: Path):
    checks = FilterConfig("default")
    text = canonicalize((root / "tests/cifs/SrTiO3.cif").read_text())
    checked, _ = run_filter([record(text)], checks)
    (bound,) = refine_checked(checked, Polar(0.2), RefineConfig(), checks)
    (slightly,) = refine_checked(checked, Polar(ADVANTAGE / 2), RefineConfig(free_symmetry=1), checks)
    assert bound.text == slightly.text == text
    assert "space_group_before" not in slightly.provenance["refined"]
    (out,) = refine_checked(checked, Polar(0.2), RefineConfig(free_symmetry=1), checks)
    assert out.rejected_by is None and out.structure.get_space_group_info()[0] == "P4mm"
    about = out.provenance["refined"]
    assert (about["space_group_before"], about["free_symmetry"], about["seed"]) == ("Pm-3m", 1, 0)
    assert Tally([out, bound]).summary() == "kept 2 of 2\nrefined 2 (1 of them in another space group now)"
    a_ang = out.structure.volume ** (1 / 3)
    assert out.scores["refined_by_ang"] == pytest.approx(0.05 * a_ang / 5**0.5, rel=1e-3)
    nothing = CIFRecord("text", "no CIF at all", text="")
    assert list(refine_records([nothing], Polar(0.2), RefineConfig(free_symmetry=1))) == [nothing]
    with pytest.raises(ValueError, match="free_symmetry is a number of attempts, got -1"):
        RefineConfig(free_symmetry=-1)


def test_shaken_atoms_leave_special_places_and_come_back_the_same_each_time(root: Path):
    crystal = parse_cif((root / "tests/cifs/SrTiO3.cif").read_text())[0]
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=16, num_layers=2, timesteps=10)
    still, shaken, again, other = (
        model.refine([crystal], None, 0.3, 4, False, *shake)[0].frac_coords
        for shake in ((), (0.1, 1), (0.1, 1), (0.1, 2))
    )
    assert np.abs(still - crystal.frac_coords - np.rint(still - crystal.frac_coords)).max() < 1e-5
    assert np.array_equal(shaken, again) and not np.allclose(shaken, other, atol=1e-3)
    assert np.abs(shaken - crystal.frac_coords - np.rint(shaken - crystal.frac_coords)).max() > 0.005


@pytest.fixture
def refine(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """bin/refine.py in a folder of its own, with a small untrained refiner; (exit status, what it printed)"""
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4)
    (tmp_path / "model").mkdir()
    save_file(dict(model.named_parameters()), tmp_path / "model/model.safetensors")
    (tmp_path / "model/config.json").write_text(json.dumps({"refiner": to_dict(model.config)}))
    monkeypatch.chdir(tmp_path)

    def script(*arguments: str) -> tuple[object, str]:
        fixed = ["--model", "model", "--device", "cpu", "--sigma", "0.03", "--steps", "1"]
        monkeypatch.setattr(sys, "argv", ["refine.py", *arguments, *fixed])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(root / "bin/refine.py"), run_name="__main__")
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    return script


def test_the_script_writes_what_is_valid(refine, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "rutile.cif").write_text(record().cif)
    (mixed / "page.cif").write_text("<html>no crystal</html>")
    (mixed / "image.cif").write_bytes(b"\x89PNG\0\xff")
    status, printed = refine("mixed", "--out", "refined")
    assert status == 0 and "kept 1 of 3" in printed and "1 written to refined" in printed
    assert "1 binary: byte 0 at position 4" in printed and "1 syntax: " in printed
    assert [one.id for one in read_records("refined")] == ["rutile"]
    status, printed = refine("mixed", "--out", "refined")
    assert status == 2 and "refined holds crystals of an earlier run (1); --overwrite replaces them" in printed
    status, printed = refine("mixed", "--out", "refined", "--overwrite", "--keep-rejected")
    assert status == 0 and "kept 1 of 3" in printed and "3 written" in printed
    assert [one.rejected_by for one in read_records("refined")] == ["binary", "syntax", None]
    status, printed = refine("mixed/page.cif", "--out", "nothing")
    assert status == 1 and "kept 0 of 1" in printed and "0 written to nothing" in printed


def test_the_script_reads_tables_and_archives_and_keeps_what_records_say(refine, tmp_path: Path) -> None:
    with open("table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["name", "structure", "band_gap"], ["TiO2", record().cif, "3.0"]])
    with zipfile.ZipFile("some.zip", "w") as archive:
        archive.writestr("zipped.cif", record().cif)
    Path("lines.jsonl").write_text(json.dumps({"structure": record().cif, "name": "line"}) + "\n")
    write_records("ours.parquet", [record(prompt="Ti O2", provenance={"seed": 3}, scores={"log_p": -1.0})])
    paths = ["table.csv", "some.zip", "lines.jsonl", "ours.parquet"]
    columns = ["--cif-column", "structure", "--id-column", "name"]
    status, printed = refine(*paths, *columns, "--out", "refined.parquet")
    assert status == 0 and "kept 4 of 4" in printed
    table, zipped, line, ours = read_records("refined.parquet")
    assert [one.id for one in (table, zipped, line, ours)] == ["TiO2", "zipped", "line", "one"]
    assert set(table.scores) == {"refined_by_ang"} and set(ours.scores) == {"log_p", "refined_by_ang"}
    assert ours.prompt == "Ti O2" and ours.provenance["seed"] == 3 and ours.text.startswith("data_TiO2")
    for overwrite in ([], ["--overwrite"]):
        before = Path("ours.parquet").read_bytes()
        status, printed = refine("ours.parquet", "--out", "ours.parquet", *overwrite)
        assert status == 2 and "ours.parquet is an input" in printed and Path("ours.parquet").read_bytes() == before


def test_refining_while_sampling(checkpoint: str) -> None:
    """The same draws, with the bundled refiner's coordinates and cells; not without checks."""
    settings = {"num": 4, "seed": 0, "model": checkpoint, "device": "cpu", "space_group": "P4_2/mnm"}
    drawn, refined = generate("TiO2", **settings), generate("TiO2", refine=True, **settings)
    assert [one.id for one in drawn] == [one.id for one in refined]
    changed = [(a, b) for a, b in zip(drawn, refined, strict=True) if "refined" in b.provenance]
    assert changed and any(a.text != b.text for a, b in changed)
    for before, after in changed:
        assert "P4_2/mnm" in after.text or after.rejected_by
        assert before.rejected_by is not None or after.rejected_by is None
    with pytest.raises(ValueError, match="refine keeps what passes the checks, so it goes with rules"):
        generate("TiO2", refine=True, rules="none", **settings)


UP_TO_U = RUTILE[: RUTILE.index("0.305")].rstrip()


def towards(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refiner of this process brings the oxygens of rutile to `u`."""
    monkeypatch.setattr("crystallm.sample.refined.load", lambda *_: (Towards(u), {"model_hash": "abc"}))


def test_duplicates_are_those_of_the_refined_crystals(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"seed": 0, "model": checkpoint, "device": "cpu"}
    drawn = generate(UP_TO_U, num=4, unique=True, **settings)
    assert "duplicate" not in {one.rejected_by for one in drawn[:2]}, "as drawn they differ"
    towards(0.305, monkeypatch)
    refined = generate(UP_TO_U, num=4, unique=True, refine=True, **settings)
    assert [one.rejected_by for one in refined] == [None, "duplicate", "duplicate", "duplicate"]
    assert {one.text for one in refined} == {RUTILE}
    asked = {"num": 2, "max_draws": 5, "until_valid": True, "refine": True, **settings}
    assert [one.rejected_by for one in generate(UP_TO_U, **asked)] == [None, None]
    stopped = generate(UP_TO_U, unique=True, **asked)
    assert [one.rejected_by for one in stopped] == [None] + 4 * ["duplicate"]


def test_workers_refine_what_they_draw(checkpoint: str) -> None:
    settings = {"num": 3, "seed": 0, "model": checkpoint, "device": "cpu", "refine": True, "unique": True}
    here, there = (generate("TiO2", space_group="P4_2/mnm", workers=n, **settings) for n in (0, 2))
    assert any("refined" in one.provenance for one in here)
    assert [(a.text, a.rejected_by) for a in here] == [(b.text, b.rejected_by) for b in there]


def test_a_refiner_that_is_not_there_is_told_before_drawing(checkpoint: str, tmp_path: Path) -> None:
    for workers in (0, 2):
        config = GenerateConfig("TiO2", refine=True, refiner=str(tmp_path / "none"), workers=workers)
        with pytest.raises(FileNotFoundError, match="none"):
            Generator.load(checkpoint, "cpu").stream(config)


def test_refined_atoms_keep_the_distance_that_was_asked_for(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num": 3, "seed": 0, "model": checkpoint, "device": "cpu", "min_distance_ang": 1.94}
    drawn = generate(UP_TO_U, **settings)
    assert all(one.rejected_by is None for one in drawn)
    towards(0.295, monkeypatch)  # Ti and O 1.915 Å apart, which the checks let pass
    for one, before in zip(generate(UP_TO_U, refine=True, **settings), drawn, strict=True):
        assert one.rejected_by is None and one.text == before.text
        assert one.provenance["refined"]["failed"] == "distance: atoms 1.915 Å apart, 1.94 Å is asked for"
    towards(0.303, monkeypatch)
    for one in generate(UP_TO_U, refine=True, **settings):
        assert one.text == RUTILE.replace("0.305", "0.303") and "failed" not in one.provenance["refined"]
