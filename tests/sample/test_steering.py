"""What is asked besides the prompt: property lines reach the model, cell and prototype bind it, and errors say why."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.retokenize import SPECS
from crystallm.interop import from_structure
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.records import CIFRecord
from crystallm.sample.cells import complete_cell, groups_of_cell, has_volume
from crystallm.sample.constraints import DeadEnd, Full
from crystallm.sample.engine import Engine, Job
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator, generate
from crystallm.sample.logits import Draw
from crystallm.sample.prefixes import NextToken
from crystallm.sample.prompts import begin, steered_prompt
from crystallm.sample.prototypes import PROTOTYPES, find_prototype, prototypes_for
from crystallm.sample.report import Tally, run
from crystallm.sample.rules import Rules
from crystallm.sample.search import SearchConfig, search_from
from crystallm.sample.steering import NOTHING, Steering, add_lines, read_assignments, read_steering
from crystallm.sample.text_forms import text_form
from crystallm.space_groups import space_group
from tokenizer import CIFTokenizer
from tokenizer.vocabulary import PROPERTY_LEAST, PROPERTY_NAMES, vocabulary_from_spec

DENSITY, GAP = "density_g_per_cm3", "band_gap_ev"


def knowing(gpt: GPT, tokenizer: CIFTokenizer, *names: str) -> Generator:
    return Generator(gpt, tokenizer, {"run": {"data": {"properties": list(names)}}})


def walk(constraint: Full, rules: Rules, rng: np.random.Generator) -> list[int] | None:
    """Tokens drawn evenly from what is allowed; None at a dead end."""
    ids = []
    while not constraint.finished:
        try:
            slot, token, mask = constraint.choice()
        except DeadEnd:
            return None
        if token < 0:
            tokens = rules.grammar.slot_tokens[slot]
            tokens = tokens if mask is None else tokens[mask]
            name = rules.grammar.slot_names[slot]
            if name == "length":
                wanted = [t for t in tokens.tolist() if 4 < rules.length_of[t] < 12]
                tokens = np.array(wanted or tokens)
            if name == "formula_units":
                tokens = tokens[:3]
            if name in ("formula_after_count", "formula_next"):  # short formulas, small counts
                tokens = np.array([t for t in tokens.tolist() if rules.integer_of.get(t, 1) < 5] or tokens)
                tokens = tokens[tokens == rules.units_keyword] if rules.units_keyword in tokens else tokens
            token = int(rng.choice(tokens))
        constraint.advance(token)
        ids.append(token)
    return ids


# ---------------------------------------------------------------- property lines


def test_names_with_and_without_their_unit(tokenizer: CIFTokenizer) -> None:
    for name in PROPERTY_NAMES:
        short = re.sub("_(ev_per_atom|ev|g_per_cm3|ang3)$", "", name)
        for given in (name, short):
            steering = read_steering(tokenizer.vocabulary, {given: 1.5}, trained=PROPERTY_NAMES)
            assert steering.lines == ((name, "+1.50"),) and steering.rounded == ()


def test_lines_stand_in_their_order_and_on_the_grid(tokenizer: CIFTokenizer) -> None:
    asked = {"volume_per_atom": 18.0, "density": 2.1284, "formation_energy": -1.996, "band_gap": 0}
    steering = read_steering(tokenizer.vocabulary, asked, trained=PROPERTY_NAMES)
    text = add_lines("data_NaCl\n", steering, tokenizer.vocabulary, "x", PROPERTY_NAMES)
    assert text == (
        "# band_gap_ev +0.00\n# formation_energy_ev_per_atom -2.00\n# density_g_per_cm3 +2.13\n"
        "# volume_per_atom_ang3 +18.00\ndata_NaCl\n"
    )
    assert len(tokenizer.encode(text)) == 8 + len(tokenizer.encode("data_NaCl\n")), "a keyword and a value each"
    assert steering.rounded == ("density_g_per_cm3 2.1284 to 2.13", "formation_energy_ev_per_atom -1.996 to -2")
    assert steering.settings["properties"][DENSITY] == 2.13
    assert "rounded: density_g_per_cm3 2.1284 to 2.13" in steering.summary()


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"colour": 1.0}, "no property 'colour'; there are band_gap_ev, formation_energy_ev_per_atom"),
        ({"density": math.nan}, "density_g_per_cm3 is nan, wanted a number from [+]0.01 to [+]99.99"),
        ({"density": -5.0}, "density_g_per_cm3 is -5, wanted a number from [+]0.01 to [+]99.99"),
        ({"density": 0.0}, "density_g_per_cm3 is 0, wanted a number from [+]0.01"),
        ({"density": 100.0}, "density_g_per_cm3 is 100, wanted a number from"),
        ({"density": -math.inf}, "density_g_per_cm3 is -inf"),
        ({"band_gap": 1.0}, "not trained with band_gap_ev, .*; it was trained with density_g_per_cm3$"),
        ({"density": 2.0, DENSITY: 3.0}, "density_g_per_cm3 is asked for twice: 2 and 3"),
    ],
)
def test_properties_that_cannot_be_asked_for(properties: dict, message: str, tokenizer: CIFTokenizer) -> None:
    with pytest.raises(PromptError, match=message):
        read_steering(tokenizer.vocabulary, properties, trained=(DENSITY,))
    assert read_steering(tokenizer.vocabulary, {DENSITY: 99.994}, trained=(DENSITY,)).lines == ((DENSITY, "+99.99"),)


def test_bounds_of_other_properties(tokenizer: CIFTokenizer) -> None:
    def ask(name: str, value: float) -> tuple[tuple[str, str], ...]:
        return read_steering(tokenizer.vocabulary, {name: value}, trained=PROPERTY_NAMES).lines

    for name in ("volume_per_atom", "band_gap", "e_above_hull"):
        with pytest.raises(PromptError, match=r"is -0\.5, wanted a number from [+]0\.0"):
            ask(name, -0.5)
    assert ask("band_gap", 0.0) == ((GAP, "+0.00"),)
    assert ask("formation_energy", -5.0) == (("formation_energy_ev_per_atom", "-5.00"),)
    with pytest.raises(PromptError, match=r"is -11, wanted a number from -10\.00 to"):
        ask("formation_energy", -11.0)
    assert set(PROPERTY_LEAST) < set(PROPERTY_NAMES)


def test_the_summary_tells_what_was_obtained(root: Path) -> None:
    """NaCl has 2.16 g/cm³, rutile 4.2, silicon 2.33; a gap is not computed, and the rejected do not count."""
    records = [
        CIFRecord(name, (root / "tests" / "cifs" / f"{name}.cif").read_text(), rejected_by=by)
        for name, by in (("NaCl", None), ("Si", None), ("rutile", "distance"))
    ]
    tally = Tally(records, {DENSITY: 60.0, "volume_per_atom_ang3": 20.0, GAP: 1.0})
    low, high = sorted(parse_cif(record.cif)[0].density_g_per_cm3 for record in records[:2])
    density, volume = tally.obtained_summary().splitlines()
    assert density == f"density asked 60.00 g/cm³, obtained {(low + high) / 2:.2f} ({low:.2f} to {high:.2f})"
    assert volume.startswith("volume per atom asked 20.00 Å³, obtained ")
    assert Tally(records).obtained_summary() == Tally([], {DENSITY: 2.0}).obtained_summary() == ""


def test_a_run_prints_what_was_obtained(
    steerable: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Generator, "load", lambda *_: steerable)
    run(GenerateConfig(properties={"density": 8.96}, num=3, seed=0, temperature=0, rules="none"))
    printed = capsys.readouterr().out
    assert "asked: density_g_per_cm3 8.96\ndensity asked 8.96 g/cm³, obtained 8.97 (8.97 to 8.97)" in printed


def test_a_model_without_property_lines_refuses(random_gpt: GPT, tokenizer: CIFTokenizer) -> None:
    plain = Generator(random_gpt, tokenizer)
    with pytest.raises(PromptError, match="was trained with no property lines"):
        plain.generate(GenerateConfig("NaCl", properties={"density": 2.0}))
    with pytest.raises(PromptError, match="not trained with band_gap_ev"):
        plain.generate(GenerateConfig("# band_gap_ev +1.10\ndata_NaCl"))


@pytest.mark.parametrize(
    "source", [None, "NaCl", "Na4Cl4", "Li-Fe-O", "# volume_per_atom_ang3 +20.00\ndata_NaCl", "cif", "file"]
)
def test_lines_stand_before_every_kind_of_prompt(
    source: str | None, random_gpt: GPT, tokenizer: CIFTokenizer, tmp_path: Path
) -> None:
    generator = knowing(random_gpt, tokenizer, DENSITY, GAP, "volume_per_atom_ang3")
    if source == "file":
        (tmp_path / "prompts.txt").write_text("NaCl\nLi-O\n")
        source = str(tmp_path / "prompts.txt")
    if source == "cif":
        source = "data_NaCl\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M Fm-3m"
    config = GenerateConfig(source, properties={"density": 2.128, "band_gap": 8}, num=1, seed=0)
    for prompt, plain in zip(
        generator.prompts(config), generator.prompts(GenerateConfig(source, num=1, seed=0)), strict=True
    ):
        stated, _, rest = plain.text.rpartition("data_")
        assert prompt.text == f"# band_gap_ev +8.00\n# density_g_per_cm3 +2.13\n{stated}data_{rest}"
        assert prompt.request == plain.request and prompt.source == plain.source
        ids, _ = generator.form.begin(prompt, "full")
        generator.rules.grammar.state_after(ids)  # raises where the order is wrong


def test_a_line_that_stands_there_already(random_gpt: GPT, tokenizer: CIFTokenizer) -> None:
    generator = knowing(random_gpt, tokenizer, GAP)
    with pytest.raises(PromptError, match="has a line of band_gap_ev already, and 2 is asked for"):
        generator.prompts(GenerateConfig("# band_gap_ev +1.10\ndata_NaCl", properties={"band_gap": 2.0}))


def test_what_was_asked_is_written_down(random_gpt: GPT, tokenizer: CIFTokenizer) -> None:
    generator = knowing(random_gpt, tokenizer, DENSITY)
    asked = {"properties": {"density": 2.128}, "cell": {"a": 5.6401}, "prototype": "rock-salt"}
    for record in generator.generate(GenerateConfig("NaCl", num=2, seed=0, **asked)):
        assert record.text.startswith("# density_g_per_cm3 +2.13\ndata_NaCl\n") and record.prompt == "NaCl"
        stated = record.provenance["settings"]
        assert stated["properties"] == {DENSITY: 2.13} and stated["cell"] == {"a": 5.64}
        assert stated["prototype"] == "rock_salt"
        assert AsymmetricUnit.from_text(record.text).properties == {DENSITY: 2.13}


def test_random_numbers_of_unsteered_samples_stay(random_gpt: GPT, tokenizer: CIFTokenizer) -> None:
    """The repr of a request seeds them: new fields must not be in it."""
    prompt = text_form(tokenizer).prompt("NaCl", 225)
    expected = (
        "Request(elements=None, space_groups=(225,), formula_units=None, conventional_units=None, given_units=None, "
        "is_open=False)"
    )
    assert str(prompt.request) == expected


def test_unique_does_not_look_at_the_lines(random_gpt: GPT, tokenizer: CIFTokenizer) -> None:
    """Without the lines stripped, formula units and group would not be told apart."""
    generator = knowing(random_gpt, tokenizer, DENSITY)
    config = GenerateConfig("NaCl", "Fm-3m", 1, {"density": 2.0}, num=3, seed=0, temperature=0, rules="none")
    fell = [record.rejected_by for record in generator.generate(GenerateConfig(**{**vars(config), "unique": True}))]
    assert fell == [None, "duplicate", "duplicate"]


@pytest.fixture(scope="module")
def steerable(tokenizer: CIFTokenizer) -> Generator:
    """Knows two crystals by heart, with their densities before them and without."""
    texts = []
    for symbol, a in (("Al", 4.05), ("Cu", 3.61)):
        site = Site(symbol, "a", (0.0, 0.0, 0.0))
        texts.append(AsymmetricUnit(((symbol, 1),), 1, 225, (a, a, a, 90.0, 90.0, 90.0), (site,)).to_text())
    asked = [f"# {DENSITY} +2.70\n{texts[0]}", f"# {DENSITY} +8.96\n{texts[1]}", *texts]
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=80, number_hidden=16)
    model = GPT(config, token_spec(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = make_batch([np.array(tokenizer.encode(text)) for text in asked], model.spec)
    for _ in range(100):
        optimizer.zero_grad()
        loss = model.loss(batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
    return knowing(model.eval(), tokenizer, DENSITY)


def test_a_model_makes_what_it_is_asked_for(steerable: Generator) -> None:
    unasked = steerable.generate(GenerateConfig(num=30, seed=0, rules="none"))
    assert {r.text.split("\n")[0] for r in unasked} >= {"data_Al", "data_Cu"}
    for value, formula in ((2.7, "data_Al"), (8.96, "data_Cu")):
        asked = {"properties": {"density": value}, "seed": 0, "rules": "none"}
        drawn = [r.text.split("\n")[1] for r in steerable.generate(GenerateConfig(num=20, **asked))]
        other = {"data_Al", "data_Cu"} - {formula}
        assert drawn.count(formula) > 2 * drawn.count(other.pop())
        (likeliest,) = steerable.generate(GenerateConfig(num=1, temperature=0, **asked))
        assert f"\n{formula}\n" in likeliest.text


def test_searches_are_steered(steerable: Generator) -> None:
    for name in ("best_of_n", "beam"):
        config = GenerateConfig(properties={"density": 8.96}, num=4, seed=0)
        (result,) = search_from(steerable, steerable.prompts(config), SearchConfig(name), config)
        assert result.answer is not None and "\ndata_Cu\n" in result.records[result.answer].text


# ---------------------------------------------------------------- guidance

LINE = f"# {DENSITY} +8.96\n"


def jobs(rules: Rules, line: str, num: int = 6) -> list[Job]:
    ids, make = begin(steered_prompt(f"{line}data_", None, None, NOTHING), rules)
    return [Job(k, ids, make, restarts=3, n_condition=2 * bool(line)) for k in range(num)]


def test_guidance_0_draws_as_if_nothing_were_asked(random_gpt: GPT, rules: Rules) -> None:
    engine = Engine(random_gpt, rules.grammar.slot_tokens, batch=4)
    asked = {s.index: s.ids for s in engine.run(jobs(rules, LINE), 0, Draw(guidance=0.0))}
    unasked = {s.index: s.ids for s in engine.run(jobs(rules, ""), 0)}
    usual = {s.index: s.ids for s in engine.run(jobs(rules, LINE), 0)}
    for k, ids in asked.items():
        assert ids[2:30] == unasked[k][:28]
    assert usual != asked


@pytest.mark.parametrize("guidance", [0.5, 2.0, 6.0])
def test_guidance_by_hand(guidance: float, random_gpt: GPT, rules: Rules) -> None:
    """The likeliest token of each slot under both softmaxes, computed from whole sequences."""
    (sample,) = Engine(random_gpt, rules.grammar.slot_tokens).run(
        jobs(rules, LINE, 1), 0, Draw(temperature=0, guidance=guidance)
    )
    next_token = NextToken(random_gpt, rules.grammar.slot_tokens)
    constraint, drawn = Full(rules), 0
    for position, token in enumerate(sample.ids[:40]):
        slot, only, mask = constraint.choice() if position else (-1, token, None)
        if only < 0 and position >= sample.n_prompt:
            sequences = [sample.ids[:position], sample.ids[2:position]]
            asked, plain = next_token.after(sequences, [slot, slot])
            guided = plain + guidance * (asked - plain)
            tokens = rules.grammar.slot_tokens[slot]
            allowed = np.full(len(tokens), True) if mask is None else mask
            assert tokens[np.where(allowed, guided, -np.inf).argmax()] == token
            assert sample.log_probs[position] == pytest.approx(asked[tokens == token][0], abs=1e-4)
            drawn += 1
        constraint.advance(token)
    assert drawn >= 8


def test_guided_samples_do_not_depend_on_the_batch(steerable: Generator) -> None:
    config = GenerateConfig(properties={"density": 8.96}, guidance=2.0, num=6, seed=0, rules="none")
    texts = [record.text for record in steerable.generate(config)]
    assert [record.text for record in steerable.generate(replace(config, batch=2))] == texts
    assert all(r.provenance["settings"]["guidance"] == 2.0 for r in steerable.generate(config))


def test_guidance_follows_more_closely(steerable: Generator) -> None:
    def wrong(guidance: float) -> int:
        config = GenerateConfig(properties={"density": 8.96}, guidance=guidance, num=40, seed=0, rules="none")
        return sum("\ndata_Al\n" in record.text for record in steerable.generate(config))

    assert wrong(0.0) > 8 and wrong(1.0) < wrong(0.0) / 2 and wrong(3.0) <= wrong(1.0)


def test_guidance_that_cannot_be(steerable: Generator) -> None:
    with pytest.raises(ValueError, match="guidance must be 0 or above and finite, got -1"):
        GenerateConfig(guidance=-1.0)
    with pytest.raises(PromptError, match="guidance=2 goes with properties, and none is asked for"):
        steerable.generate(GenerateConfig("Al", guidance=2.0))
    config = GenerateConfig(properties={"density": 3.0}, guidance=2.0)
    with pytest.raises(ValueError, match="search=beam takes no guidance, got 2"):
        search_from(steerable, steerable.prompts(config), SearchConfig("beam"), config)


# ---------------------------------------------------------------- the cell


def test_tied_lengths_follow() -> None:
    assert complete_cell(225, (None, None, 4.0, None, None, None)) == (4.0, 4.0, 4.0, None, None, None)
    assert complete_cell(194, (None, 3.0, 5.0, None, None, 120.0)) == (3.0, 3.0, 5.0, None, None, 120.0)
    assert complete_cell(62, (None, 3.0, 5.0, None, None, 90.0)) == (None, 3.0, 5.0, None, None, 90.0)
    assert complete_cell(225, (4.0, None, 4.01, None, None, None)) is None
    assert complete_cell(194, (None, None, None, None, None, 90.0)) is None
    assert complete_cell(14, (None, None, None, None, 89.9, None)) is None


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ({"a": 4.0, "b": 4.1}, ("triclinic", "monoclinic", "orthorhombic")),
        ({"beta": 100.0}, ("triclinic", "monoclinic")),
        ({"a": 4.0, "c": 4.1}, ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal")),
        ({"gamma": 120.0}, ("triclinic", "trigonal", "hexagonal")),
        ({"alpha": 80.0}, ("triclinic",)),
    ],
)
def test_groups_whose_ties_contradict_a_cell(cell: dict, wanted: tuple, tokenizer: CIFTokenizer) -> None:
    asked = read_steering(tokenizer.vocabulary, cell=cell).cell
    systems = {space_group(n).crystal_system for n in np.flatnonzero(groups_of_cell(asked)) + 1}
    assert systems == set(wanted)


@pytest.mark.parametrize(
    "cell", [{"a": 6.0}, {"a": 5.0, "c": 7.5}, {"b": 6.5, "beta": 100.0}, {"c": 9.0, "gamma": 120.0}, {"alpha": 75.0}]
)
def test_every_structure_that_ends_has_the_cell(cell: dict, rules: Rules) -> None:
    rng = np.random.default_rng(0)
    steering = read_steering(rules.tokenizer.vocabulary, cell=cell)
    ended, groups = 0, set()
    for source in ("NaCl", "Li-O", "CaTiO3", ""):
        ids, make = begin(steered_prompt(source, None, None, steering), rules)
        for _ in range(30):
            drawn = walk(make(), rules, rng)  # type: ignore[arg-type]
            if drawn is None or len(drawn) > 300:
                continue
            unit = AsymmetricUnit.from_text(rules.tokenizer.decode([*ids, *drawn]))
            got = dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), unit.cell, strict=True))
            assert {name: got[name] for name in cell} == cell
            ended, groups = ended + 1, groups | {unit.space_group_number}
    assert ended >= 15 and len(groups) >= (2 if "alpha" in cell else 8)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"d": 1.0}, "a cell has no 'd'; it has a, b, c, alpha, beta, gamma"),
        ({"a": 0.5}, "a is 0.5, wanted a number from 1.00 to 99.99"),
        ({"beta": 175.0}, "beta is 175, wanted a number from 10.0 to 170.0"),
        ({"a": math.nan}, "a is nan"),
        ({"alpha": 30.0, "beta": 30.0, "gamma": 100.0}, "no cell has the angles 30.0, 30.0 and 100.0°"),
    ],
)
def test_cells_that_cannot_be(cell: dict, message: str, tokenizer: CIFTokenizer) -> None:
    with pytest.raises(PromptError, match=message):
        read_steering(tokenizer.vocabulary, cell=cell)
    assert has_volume(90, 90, 90) and not has_volume(30, 30, 100)


def steered(source: str, group: int | str | None = None, units: int | None = None, **asked: object):
    return steered_prompt(source, group, units, read_steering(CIFTokenizer().vocabulary, **asked))  # type: ignore[arg-type]


def test_cells_that_the_prompt_contradicts(rules: Rules) -> None:
    with pytest.raises(
        PromptError, match=r"cell of Fm-3m .* has b = a, c = a, alpha = 90°.*; asked for a = 4, b = 4\.1"
    ):
        steered("NaCl", "Fm-3m", cell={"a": 4.0, "b": 4.1})
    head = "data_NaCl\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M Fm-3m"
    with pytest.raises(PromptError, match=r"line 3: got 'Fm-3m', wanted P1, P-1"):
        begin(steered(head, cell={"alpha": 80.0}), rules)
    with pytest.raises(PromptError, match=r"line 4: got '5.60', wanted 5.64"):
        begin(steered(head + "\n_cell_length_a 5.60", cell={"a": 5.64}), rules)
    with pytest.raises(
        PromptError, match=r"nothing can follow: a = 1\.50 Å is asked for, and lattice points keep apart"
    ):
        begin(steered("NaCl", "Fm-3m", 1, cell={"a": 1.5}), rules)
    with pytest.raises(PromptError, match="a cell needs constraints=full, got constraints=syntax"):
        begin(steered("NaCl", cell={"a": 5.0}), rules, "syntax")
    with pytest.raises(PromptError, match="a cell needs constraints=full, got constraints=none"):
        begin(steered("NaCl", cell={"a": 5.0}), rules, "none")


# ---------------------------------------------------------------- prototypes

# pymatgen's copy of the AFLOW library, by its own name of the prototype.
AFLOW = {
    "fcc": "A_cF4_225_a",
    "bcc": "A_cI2_229_a",
    "hcp": "A_hP2_194_c",
    "dhcp": "A_hP4_194_ac",
    "simple_cubic": "A_cP1_221_a",
    "diamond": "A_cF8_227_a",
    "graphite": "A_hP4_194_bc",
    "beta_tin": "A_tI4_141_a",
    "rock_salt": "AB_cF8_225_a_b",
    "cscl": "AB_cP2_221_b_a",
    "zinc_blende": "AB_cF8_216_c_a",
    "wurtzite": "AB_hP4_186_b_b",
    "nickeline": "AB_hP4_194_c_a",
    "cuau": "AB_tP2_123_a_d",
    "fluorite": "AB2_cF12_225_a_c",
    "rutile": "A2B_tP6_136_f_a",
    "pyrite": "AB2_cP12_205_a_c",
    "cadmium_iodide": "AB2_hP3_164_a_d",
    "molybdenite": "AB2_hP6_194_c_f",
    "aluminium_diboride": "AB2_hP3_191_a_d",
    "laves_c15": "A2B_cF24_227_d_a",
    "laves_c14": "AB2_hP12_194_f_ah",
    "cu3au": "AB3_cP4_221_a_c",
    "a15": "A3B_cP8_223_c_a",
    "bismuth_trifluoride": "AB3_cF16_225_a_bc",
    "corundum": "A2B3_hR10_167_c_e",
    "perovskite": "AB3C_cP5_221_a_c_b",
    "half_heusler": "ABC_cF12_216_b_c_a",
    "delafossite": "ABC2_hR4_166_a_b_c",
    "chalcopyrite": "ABC2_tI16_122_a_b_d",
    "heusler": "AB2C_cF16_225_a_c_b",
    "spinel": "A2BC4_cF56_227_d_a_e",
}


def test_prototypes_are_those_of_the_literature() -> None:
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    library = {entry["tags"]["aflow"]: entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY}
    for name, tag in AFLOW.items():
        unit = canonicalize(from_structure(library[tag]))
        prototype = find_prototype(name)
        letters = tuple(unit.group.position(site.letter).index for site in unit.sites)
        assert (unit.space_group_number, unit.formula_units) == (prototype.space_group, prototype.formula_units), name
        assert (tuple(count for _, count in unit.formula), letters) in prototype.arrangements, name


FORMULAS = ("Po", "NaCl", "CaF2", "Fe2O3", "CaTiO3", "LiCaN", "MgAl2O4", "CuAlO2", "ThCr2Si2", "Ca2Nb2O7", "NaAlK2F6")
# Large enough for what stands on special positions; free coordinates are left room.
ROOMY = {"a": 11.0, "c": 14.0}


@pytest.mark.parametrize("prototype", PROTOTYPES, ids=lambda prototype: prototype.name)
def test_what_is_drawn_has_the_prototype(prototype, rules: Rules) -> None:
    """Letters are the canonical ones, as the models know them: described anew, the crystal has the same."""
    rng = np.random.default_rng(0)
    is_cubic = space_group(prototype.space_group).crystal_system == "cubic"
    cell = {"a": ROOMY["a"]} if is_cubic else ROOMY
    for formula in (prototype.example, *(f for f in FORMULAS if prototype.name in prototypes_for(_counts(f)))):
        ids, make = begin(steered(formula, prototype=prototype.name, cell=cell), rules)
        for _ in range(20):
            drawn = walk(make(), rules, rng) if not make().finished else []  # type: ignore[arg-type]
            if drawn is None:
                continue
            unit = AsymmetricUnit.from_text(rules.tokenizer.decode([*ids, *drawn]))
            letters = tuple(unit.group.position(site.letter).index for site in unit.sites)
            again = canonicalize(unit.to_crystal())
            if again.space_group_number != prototype.space_group:  # a free coordinate met a special value
                continue
            assert (tuple(n for _, n in unit.formula), letters) in prototype.arrangements
            assert tuple(again.group.position(site.letter).index for site in again.sites) == letters
            assert again.formula_units == prototype.formula_units
            break
        else:
            pytest.fail(f"no {formula} of this prototype ended")


def _counts(formula: str) -> tuple[int, ...]:
    return tuple(int(n or 1) for n in re.findall(r"[A-Z][a-z]?(\d*)", formula))


def test_open_prompts_get_a_formula_of_the_type(rules: Rules) -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for source in ("", "Ca-Ti-O"):
        ids, make = begin(steered(source, prototype="perovskite", cell={"a": 9.0}), rules)
        for _ in range(12):
            drawn = walk(make(), rules, rng)  # type: ignore[arg-type]
            if drawn is None:
                continue
            unit = AsymmetricUnit.from_text(rules.tokenizer.decode([*ids, *drawn]))
            assert sorted(count for _, count in unit.formula) == [1, 1, 3] and unit.cell[0] == 9.0
            if source:
                assert {symbol for symbol, _ in unit.formula} == {"Ca", "Ti", "O"}
            seen.add(tuple(count for _, count in unit.formula))
    assert len(seen) == 3, "the three may stand on any element"


def test_equal_counts_leave_the_sites_to_the_model() -> None:
    letters = {one.letters for one in find_prototype("perovskite").arrangements if one.counts == (1, 1, 3)}
    assert letters == {(0, 1, 2), (0, 1, 3)}, "Ca in the cuboctahedron, or Ti"
    assert [one.letters for one in find_prototype("rock_salt").arrangements] == [(0, 1)]


@pytest.mark.parametrize(
    ("source", "asked", "message"),
    [
        ("NaCl", {"prototype": "fcc"}, "'NaCl': fcc is A, as Cu; .* can have: rock_salt, cscl, zinc_blende, wurtzite"),
        ("Na7Cl3", {"prototype": "fcc"}, "prototypes that this formula can have: none"),
        ("Li-O", {"prototype": "perovskite"}, "perovskite is ABX3, of 3 elements; the system has 2"),
        ("Al", {"prototype": "FCX"}, "no prototype 'FCX'; the closest is 'fcc'; there are fcc, bcc, hcp"),
        ("Al", {"prototype": "fcc", "group": 221}, "fcc has 1 formula unit in the primitive cell of Fm-3m"),
        ("Al", {"prototype": "fcc", "units": 2}, "fcc has 1 formula unit in the primitive cell of Fm-3m"),
        ("Al3", {"prototype": "fcc"}, "no structure can have 1 formula unit of Al .* and 3 in the conventional cell"),
        ("Al", {"prototype": "fcc", "cell": {"a": 4.0, "c": 4.2}}, "cell of Fm-3m .* has b = a, c = a"),
    ],
)
def test_prototypes_that_do_not_fit(source: str, asked: dict, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        steered(source, asked.pop("group", None), asked.pop("units", None), **asked)


def test_prototypes_go_with_what_is_said_alike(rules: Rules) -> None:
    texts = {
        steered("Al4", prototype="fcc").text,
        steered("Al", 225, 1, prototype="FCC").text,
        steered("data_Al", prototype="fcc").text,
    }
    assert len(texts) == 1 and texts.pop().endswith("Fm-3m")
    with pytest.raises(PromptError, match="a prototype needs constraints=full"):
        begin(steered("Al", prototype="fcc"), rules, "syntax")
    with pytest.raises(PromptError, match=r"nothing can follow: a = 1\.50 Å is asked for"):
        begin(steered("Al", prototype="fcc", cell={"a": 1.5}), rules)


# ---------------------------------------------------------------- other models, the command


def test_other_texts_cannot_be_asked() -> None:
    for tokenizer in (CIFTokenizer("crystallm_v1"), CIFTokenizer(vocabulary_from_spec(SPECS["digits"]()))):
        for asked in ({"cell": {"a": 4.0}}, {"prototype": "fcc"}):
            with pytest.raises(PromptError, match=f"the vocabulary '{tokenizer.name}' do not write it under constr"):
                read_steering(tokenizer.vocabulary, **asked)  # type: ignore[arg-type]
        with pytest.raises(PromptError, match=f"there are none in the vocabulary '{tokenizer.name}'"):
            read_steering(tokenizer.vocabulary, {"density": 2.0}, trained=(DENSITY,))
    with pytest.raises(PromptError, match="no property lines, and no constraint on cell"):
        text_form(CIFTokenizer("crystallm_v1")).prompt("NaCl", steering=Steering(cell=(4.0, *[None] * 5)))  # type: ignore[arg-type]


def test_assignments_of_the_command_line() -> None:
    assert read_assignments(["a=4.0", " c = 6.1"]) == {"a": 4.0, "c": 6.1}
    for text, message in (("a", "got 'a', wanted NAME=NUMBER"), ("a=x", "a is 'x', wanted a number")):
        with pytest.raises(PromptError, match=message):
            read_assignments([text])
    with pytest.raises(PromptError, match="a is asked for twice: 4 and 5"):
        read_assignments(["a=4", "a=5"])


def test_fcc_with_a_lattice_constant(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"cell": {"a": 4.0495}, "prototype": "fcc", "num": 2, "seed": 0, "model": checkpoint}
    records = generate("Al", **settings)
    for record in records:
        unit = AsymmetricUnit.from_text(record.text)
        assert record.rejected_by is None and unit.group.symbol == "Fm-3m" and unit.cell[:3] == (4.05, 4.05, 4.05)
        assert unit.to_crystal().n_atoms == 4
    run(GenerateConfig("Al", **settings))
    assert "asked: cell a 4.05 Å; prototype fcc" in (out := capsys.readouterr().out)
    assert "rounded: a 4.0495 to 4.05" in out


def test_refining_leaves_a_cell_that_was_asked_for(checkpoint: str) -> None:
    settings = {"space_group": "P4/nmm", "num": 4, "seed": 0, "model": checkpoint, "formula_units": 2, "refine": True}
    asked = generate("LiFe", cell={"a": 5.0, "c": 6.5}, **settings)
    kept = [record for record in asked if record.rejected_by is None and "refined" in record.provenance]
    assert kept
    for record in kept:
        assert record.crystal is not None
        assert np.allclose(np.linalg.norm(record.crystal.lattice, axis=1), (5.0, 5.0, 6.5), atol=1e-3)


def test_the_script_takes_them(checkpoint: str, root: Path) -> None:
    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "bin/sample.py"), "--model", checkpoint, "--device", "cpu", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = script("--prompt", "ZnS", "--prototype", "zinc_blende", "--cell", "a=5.4", "--num", "1", "--seed", "0")
    assert done.returncode == 0 and "kept 1 of 1" in done.stdout and "F-43m (216)" in done.stdout, done.stderr
    bad = script("--prompt", "NaCl", "--property", "density=2", "--property", "density=3")
    assert bad.returncode == 2 and "density is asked for twice: 2 and 3" in bad.stderr
    bad = script("--prompt", "NaCl", "--property", "density=2")
    assert bad.returncode == 2 and "not trained with density_g_per_cm3" in bad.stderr and "Traceback" not in bad.stderr
