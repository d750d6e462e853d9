from __future__ import annotations

import re
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Structure

import crystallm
from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.checks.filter import FilterConfig, run_filter
from crystallm.checks.known import KnownCrystals, same_crystal
from crystallm.records import CIFRecord, read_records
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator, generate
from crystallm.sample.report import Tally, _polymorphs_path, run, table
from crystallm.sample.search import SearchConfig

NACL = {"prompt": "NaCl", "space_group": "Fm-3m", "formula_units": 1}


def texts(records: list[CIFRecord]) -> list[str]:
    return [record.text for record in records]


def test_bfloat16_is_asked_for_and_written_down(checkpoint: str) -> None:
    usual = generate(num=6, seed=0, model=checkpoint, device="cpu", **NACL)
    half = generate(num=6, seed=0, model=checkpoint, device="cpu", dtype="bfloat16", **NACL)
    assert all("dtype" not in record.provenance["settings"] for record in usual)
    assert all(record.provenance["settings"]["dtype"] == "bfloat16" for record in half)
    assert all(AsymmetricUnit.from_text(record.text).reduced_formula == "NaCl" for record in half)
    scores = [[record.scores["log_likelihood_nats"] for record in records] for records in (usual, half)]
    assert scores[0] != scores[1]  # it is not float32 under another name
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got 'float16'"):
        GenerateConfig(dtype="float16")


def test_records(checkpoint: str) -> None:
    records = generate("Na Cl", num=4, seed=0, model=checkpoint, space_group="F m -3 m", formula_units=1, device="cpu")
    assert [record.id for record in records] == [f"gen-{k:06d}" for k in range(4)]
    for k, record in enumerate(records):
        unit = AsymmetricUnit.from_text(record.text)
        assert (unit.reduced_formula, unit.group.symbol, unit.formula_units) == ("NaCl", "Fm-3m", 1)
        assert unit.to_text() == record.text, "canonical to the last blank"
        structure = Structure.from_str(record.cif, fmt="cif")
        assert structure.composition.reduced_formula == "NaCl" and len(structure) == 8
        assert record.prompt == "Na Cl" and record.scores["log_likelihood_nats"] < 0
        assert record.scores["log_mask_mass_nats"] <= 0
        assert record.scores["log_likelihood_nats"] < record.scores["log_likelihood_per_token"] < 0
        provenance = record.provenance
        assert (provenance["seed"], provenance["index"], provenance["prompt"]) == (0, k, "Na Cl")
        assert len(provenance["model_hash"]) == 64 and provenance["generator"] == f"crystallm {crystallm.__version__}"
        assert provenance["settings"]["constraints"] == "full" and provenance["settings"]["space_group"] == "F m -3 m"


def test_crystallm_generate_is_the_same(checkpoint: str) -> None:
    settings = {**NACL, "num": 2, "seed": 3, "model": checkpoint}
    assert texts(crystallm.generate(**settings)) == texts(generate(config=GenerateConfig(**settings)))


def test_seeds_batches_and_company_do_not_show(checkpoint: str) -> None:
    settings = {**NACL, "num": 5, "model": checkpoint, "rules": "none"}
    whole = texts(generate(seed=7, **settings))
    assert texts(generate(seed=7, batch=2, **settings)) == whole
    assert texts(generate(seed=8, **settings)) != whole
    assert texts(generate(seed=7, **{**settings, "num": 3})) == whole[:3]
    prompts = ("CsCl", "NaCl", "NaCl")
    records = generate(seed=7, **{**settings, "prompt": prompts})
    assert texts(records)[5:10] == whole, "another prompt before it changes nothing"
    assert not set(texts(records)[10:]) & set(whole), "the same prompt again goes on"
    assert [record.id for record in records][4:6] == ["gen-0000-000004", "gen-0001-000000"]
    assert len({record.id for record in records}) == 15


def test_a_fresh_seed_is_kept(checkpoint: str) -> None:
    first, second = (generate(num=2, model=checkpoint, rules="none", **NACL) for _ in range(2))
    assert texts(first) != texts(second)
    seed = first[0].provenance["seed"]
    assert texts(generate(num=2, model=checkpoint, rules="none", seed=seed, **NACL)) == texts(first)


def test_all_that_is_drawn_comes_back(checkpoint: str) -> None:
    """Random cells are mostly empty: the checks reject them, and each says why."""
    records = generate("NaCl", num=20, seed=0, model=checkpoint, formula_units=2)
    assert len(records) == 20
    rejected = [record for record in records if record.rejected_by]
    assert rejected and all(record.reason for record in rejected)
    again, counts = run_filter(records, FilterConfig())
    assert [record.rejected_by for record in again] == [record.rejected_by for record in records]
    assert counts.n_valid + sum(counts.rejected_by.values()) == 20
    text = Tally(records).summary()
    assert text.startswith(f"kept {20 - len(rejected)} of 20")
    assert all(name in text for name in Counter(record.rejected_by for record in rejected))


def test_dead_ends_and_unfinished_ones_are_records(checkpoint: str) -> None:
    crowded = "data_Cs\n_crystallm_primitive_formula_units 8\n_symmetry_space_group_name_H-M P-1\n_cell_length_a 3.00"
    crowded += "\n_cell_length_b 3.00\n_cell_length_c 3.00"
    records = generate(crowded, num=3, seed=0, model=checkpoint, restarts=1)
    assert [record.rejected_by for record in records] == ["dead_end"] * 3 and all(record.reason for record in records)
    long = generate("CaTiO3", num=2, seed=0, model=checkpoint, space_group=1, formula_units=90)
    assert [record.rejected_by for record in long] == ["unfinished"] * 2
    assert all(record.text.startswith("data_CaTiO3\n") for record in long)


def test_until_valid(checkpoint: str) -> None:
    settings = {**NACL, "seed": 0, "model": checkpoint, "until_valid": True}
    records = generate(num=3, **settings)
    valid = [record for record in records if record.rejected_by is None]
    assert len(valid) == 3 and records[-1] is valid[-1] and len(records) > 3
    assert [record.provenance["index"] for record in records] == list(range(len(records)))
    assert texts(generate(num=3, batch=2, **settings)) == texts(records), "how many are drawn at a time does not show"
    stopped = generate(num=3, max_draws=4, **settings)
    assert texts(stopped) == texts(records)[:4]


def test_until_valid_and_unique_by_hand(checkpoint: str) -> None:
    """Draw by draw and prompt by prompt, compared with all that came before: what any number under way must give."""
    settings = {"seed": 0, "model": checkpoint, "formula_units": 1, "space_group": "I4/mmm"}
    prompts = ("NaCl", "CsCl", "NaCl")
    drawn = generate(prompts, num=30, **settings)  # random numbers of the second NaCl go on after the first's
    asked = {"num": 3, "max_draws": 30, "until_valid": True, "unique": True}
    wanted: list[tuple[str, str | None]] = []
    kept: list[str] = []
    for number in range(len(prompts)):
        n_before = len(kept)
        for record in drawn[30 * number : 30 * number + 30]:
            fell = record.rejected_by
            if fell is None and any(same_crystal(text, record.text) for text in kept):
                fell = "duplicate"
            kept += [record.text] if fell is None else []
            wanted.append((record.text, fell))
            if len(kept) == n_before + 3:
                break
    assert {"duplicate", "cell", None} <= {fell for _, fell in wanted} and len(wanted) < 90
    for batch in (256, 3, 1):
        records = generate(prompts, batch=batch, **settings, **asked)
        assert [(record.text, record.rejected_by) for record in records] == wanted


def test_a_stream_keeps_no_records(checkpoint: str) -> None:
    settings = {**NACL, "seed": 0, "model": checkpoint, "num": 60, "batch": 4}
    config = GenerateConfig(**settings)
    stream = Generator.load(checkpoint, "cpu").stream(config)
    lattices, most_alive, ids = [], 0, []
    for record in stream:
        ids.append(record.id)
        if record.crystal is not None:
            lattices.append(weakref.ref(record.crystal.lattice))
        del record
        most_alive = max(most_alive, sum(reference() is not None for reference in lattices))
    assert ids == [f"gen-{k:06d}" for k in range(60)] and len(lattices) == 60
    assert most_alive <= 8


def test_a_stream_stops_where_it_is_left(checkpoint: str) -> None:
    """And a prompt that nothing can satisfy is refused before the first draw."""
    generator = Generator.load(checkpoint, "cpu")
    settings = {**NACL, "seed": 0, "rules": "none"}
    stream = generator.stream(GenerateConfig(**settings, num=10**6))
    assert [next(stream).text for _ in range(3)] == texts(generator.generate(GenerateConfig(**settings, num=3)))
    with pytest.raises(PromptError, match="no structure can have 3 formula units"):
        generator.stream(GenerateConfig(**{**settings, "formula_units": 3}))


def test_a_prompt_too_long_is_named_before_drawing(checkpoint: str) -> None:
    long = "data_NaCl\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M P1" + " P1" * 400
    generator, config = Generator.load(checkpoint, "cpu"), GenerateConfig(("NaCl", long), constraints="none")
    with pytest.raises(PromptError, match=r"^'data_NaCl': \d+ tokens, the model reads at most 400$"):
        generator.stream(config)


def test_settings_of_the_command_are_refused_by_the_function(checkpoint: str, tmp_path: Path) -> None:
    settings = {"out": str(tmp_path / "o.parquet"), "keep_rejected": True, "overwrite": True, "known": "known.parquet"}
    for name, value in settings.items():
        with pytest.raises(ValueError, match=f"returns all records and writes none: {name} go with bin/sample.py"):
            generate("NaCl", model=checkpoint, **{name: value})


def test_polymorphs_are_written_beside_the_records() -> None:
    """A folder's name may hold a dot: that is no ending."""
    names = {"T0.5": "T0.5", "T0.7": "T0.7", "a.b.tar.gz": "a.b", "x.TGZ": "x", "x.parquet": "x", "x.tar": "x"}
    for out, stem in names.items():
        assert _polymorphs_path(out).name == f"{stem}.polymorphs.csv"


def test_an_index_that_is_not_there_is_told(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"known: .*none\.npz does not exist; wanted known\.npz"):
        run(GenerateConfig(**NACL, model=checkpoint, known=str(tmp_path / "none.npz")))  # type: ignore[arg-type]


def test_prompts_with_the_same_random_numbers(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream of a prompt is 32 bits of a hash: two of a million prompts will share one."""

    same = SimpleNamespace(sha256=lambda data: SimpleNamespace(digest=lambda: bytes(32)))
    monkeypatch.setattr("crystallm.sample.generate.hashlib", same)
    settings = {"seed": 0, "model": checkpoint, "num": 3, "rules": "none", "formula_units": 1}
    prompts = ("NaCl", "CsCl", "KCl")
    alone = [text for prompt in prompts for text in texts(generate(prompt, **settings))]
    assert texts(generate(prompts, **settings)) == alone


def test_unique(checkpoint: str) -> None:
    """Greedy samples are all the same."""
    settings = {**NACL, "num": 3, "seed": 0, "model": checkpoint, "temperature": 0.0, "rules": "none"}
    records = generate(unique=True, **settings)
    assert [record.rejected_by for record in records] == [None, "duplicate", "duplicate"]
    assert records[2].reason == "the same crystal as gen-000000"


def test_unique_holds_across_prompts(checkpoint: str) -> None:
    """And with until_valid each prompt still gets as many of its own, if it can."""
    settings = {"seed": 0, "model": checkpoint, "temperature": 0.0, "rules": "none", "unique": True, **NACL}
    settings["prompt"] = ("NaCl", "Na Cl")
    records = generate(num=1, **settings)
    assert [record.rejected_by for record in records] == [None, "duplicate"]
    assert records[1].reason == "the same crystal as gen-0000-000000"
    for batch in (256, 1):
        records = generate(num=1, until_valid=True, max_draws=3, batch=batch, **settings)
        assert [record.id for record in records] == ["gen-0000-000000"] + [f"gen-0001-00000{k}" for k in range(3)]
        assert [record.rejected_by for record in records] == [None] + 3 * ["duplicate"]


@pytest.mark.parametrize("mode", ["none", "syntax"])
def test_weaker_constraints(mode: str, checkpoint: str) -> None:
    records = generate(num=3, seed=0, model=checkpoint, constraints=mode, **NACL)
    assert len(records) == 3 and all(record.text.startswith("data_NaCl\n") for record in records)
    assert all(record.rejected_by for record in records), "an untrained model writes no crystal by itself"


def test_files(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = GenerateConfig(**NACL, num=6, seed=0, model=checkpoint, until_valid=True)  # type: ignore[arg-type]
    records = generate(config=config)
    kept = [replace(r, crystal=None, header=None) for r in records if r.rejected_by is None]
    for name in ("folder", "all.tar", "all.parquet"):
        config = replace(config, out=str(tmp_path / name))
        tally = run(config)
        assert tally.counts.n_read == len(records) and tally.counts.n_valid == 6
        assert list(read_records(tmp_path / name)) == kept
        printed = capsys.readouterr().out
        assert f"kept 6 of {len(records)}" in printed and "seed 0" in printed and "known: -" in printed
    run(replace(config, out=str(tmp_path / "with_rejected"), keep_rejected=True))
    assert len(list(read_records(tmp_path / "with_rejected"))) == len(records)


def test_a_long_table_is_cut(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crystallm.sample.report.MAX_SHOWN", 2)
    config = GenerateConfig(**NACL, num=5, seed=0, model=checkpoint, rules="none")  # type: ignore[arg-type]
    for out, more in ((None, "not written: no --out"), (str(tmp_path / "x"), f"in {tmp_path / 'x'}")):
        run(replace(config, out=out))
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[2:5]] == ["gen-000000", "gen-000001", "…"]
        assert lines[4].startswith("… and 3 more") and lines[4].endswith(more) and lines[5] == "kept 5 of 5"
    assert len(list(read_records(tmp_path / "x"))) == 5


def test_a_place_that_cannot_be_written_is_refused_before_drawing(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.cif").write_text("data_x")
    monkeypatch.setattr(Generator, "sample", None)
    with pytest.raises(FileExistsError, match=r"mine\.cif"):
        run(GenerateConfig(**NACL, model=checkpoint, out=str(tmp_path)))  # type: ignore[arg-type]


def test_table_says_whether_a_crystal_is_known(checkpoint: str) -> None:
    records = generate(num=2, seed=0, model=checkpoint, until_valid=True, **NACL)
    valid = [record for record in records if record.rejected_by is None]
    index = KnownCrystals.from_records([CIFRecord(id="mp-22862", cif="", text=valid[0].text)])
    lines = table(valid, index.find).splitlines()
    assert len(lines) == 4
    unit, crystal = AsymmetricUnit.from_text(valid[0].text), valid[0].crystal
    assert crystal is not None
    cells = lines[2].split()
    assert cells[:4] == ["gen-" + cells[0][4:], "NaCl", "Fm-3m", "(225)"] and cells[-1] == "mp-22862"
    assert [float(x) for x in cells[4:7]] == list(unit.cell[:3])
    volume = float(np.linalg.det(crystal.lattice)) / crystal.n_atoms
    assert float(cells[11]) == pytest.approx(volume, abs=0.06)
    assert float(cells[13]) == pytest.approx(min(unit.cell[0] / 2, unit.cell[0] / 2**0.5), abs=0.006)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prompt": "NaXx"}, PromptError, "'Xx' is no element"),
        (
            {"prompt": "NaCl", "space_group": 225, "formula_units": 3},
            PromptError,
            "no structure can have 3 formula units",
        ),
        ({"num": 0}, ValueError, "num must be at least 1, got 0"),
        ({"num": 5, "max_draws": 4}, ValueError, "max_draws must be at least num"),
        ({"max_draws": 40}, ValueError, "max_draws goes with until_valid, got max_draws=40 alone"),
        ({"refiner": "mine"}, ValueError, "refiner goes with refine, got refiner='mine' alone"),
        (
            {"min_distance_ang": 1.0, "constraints": "syntax"},
            ValueError,
            "min_distance_ang goes with constraints=full, got constraints=syntax",
        ),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be"),
        ({"constraints": "some"}, ValueError, "constraints must be none, syntax or full, got 'some'"),
        ({"top_p": 2.0}, ValueError, "top_p"),
        ({"restarts": -1}, ValueError, "restarts"),
        ({"temperature": 1e300}, ValueError, r"temperature must be .*, got 1e\+300"),
        ({"batch": 0, "workers": 2}, ValueError, "batch must be at least 1, got 0"),
        ({"min_distance_ang": -1.0}, ValueError, "min_distance_ang must be 0 or above and finite, got -1.0"),
        ({"min_distance_ang": float("nan")}, ValueError, "finite, got nan"),
        ({"min_distance_ang": float("inf")}, ValueError, "finite, got inf"),
        ({"device": "abacus"}, ValueError, "no device 'abacus' here, by torch .*; there are auto, cpu"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], message: str, checkpoint: str) -> None:
    with pytest.raises(error, match=message):
        generate(**{"model": checkpoint, **settings})


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        generate("NaCl", model=str(tmp_path))


def test_the_script(checkpoint: str, root: Path, tmp_path: Path) -> None:
    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "bin/sample.py"), "--model", checkpoint, "--device", "cpu", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    asked = ("--prompt", "Na Cl", "--space-group", "P m -3 m", "--formula-units", "1", "--num", "3")
    done = script(*asked, "--seed", "1", "--out", "out", "--keep-rejected")
    assert done.returncode == 0, done.stderr
    assert re.search(r"kept \d of 3", done.stdout) and "seed 1" in done.stdout
    assert len(list((tmp_path / "out").glob("*.cif"))) == 3
    again = script(*asked, "--seed", "2", "--out", "out")
    assert (
        again.returncode == 2 and "out holds crystals of an earlier run (3); --overwrite replaces them" in again.stderr
    )
    assert "kept" not in again.stdout and len(list((tmp_path / "out").glob("*.cif"))) == 3
    hint = script("Na", "Cl")
    assert hint.returncode == 2 and 'a formula goes with --prompt: --prompt "Na Cl"' in hint.stderr
    bad = script("--prompt", "NaXx")
    assert bad.returncode == 2 and "'Xx' is no element; closest is" in bad.stderr and "Traceback" not in bad.stderr


def test_what_an_earlier_run_wrote_is_kept_unless_told(checkpoint: str, tmp_path: Path) -> None:
    for name, message in (
        ("made", r"made holds crystals of an earlier run \(2\)"),
        ("made.tar", "exists"),
        ("made.parquet", "exists"),
    ):
        out = tmp_path / name
        config = GenerateConfig(**NACL, num=2, seed=0, model=checkpoint, device="cpu", rules="none", out=str(out))
        run(config)
        with pytest.raises(FileExistsError, match=f"{message}.*; --overwrite replaces"):
            run(replace(config, model="no model is loaded"))
        run(replace(config, num=1, overwrite=True))
        assert len(list(read_records(out))) == 1
    (tmp_path / "other.polymorphs.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other\.polymorphs\.csv exists"):
        run(replace(config, model="none", out=str(tmp_path / "other.tar")), SearchConfig("self_consistency"))
    with pytest.raises(ValueError, match=r"made\.parquet is an input"):
        run(replace(config, model="none", known=config.out, overwrite=True))


def test_drawing_needs_no_crystal_library(checkpoint: str, root: Path, tmp_path: Path) -> None:
    """Prompts, constraints and engine run where pymatgen, spglib and the like are not installed."""
    program = """
import sys
for name in ("pymatgen", "spglib", "moyopy", "gemmi", "ase", "pandas", "pyarrow", "scipy", "wandb", "matplotlib"):
    sys.modules[name] = None
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.engine import Engine, Job
from crystallm.sample.prompts import begin, parse_prompt
generator = Generator.load(sys.argv[1], "cpu")
ids, new = begin(parse_prompt("NaCl", "Fm-3m", 1), generator.rules)
engine = Engine(generator.model, generator.rules.grammar.slot_tokens)
for sample in engine.run([Job(k, ids, new) for k in range(3)], seed=0):
    print(sample.stopped, generator.tokenizer.decode(sample.ids).splitlines()[0])
"""
    command = [sys.executable, "-c", program, checkpoint]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.stdout.split() == ["end", "data_NaCl"] * 3, done.stderr
