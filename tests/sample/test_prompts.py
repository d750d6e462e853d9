from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import Full
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.prompts import begin, parse_prompt, read_prompts
from crystallm.sample.rules import Rules
from tokenizer import CIFTokenizer

HEAD = "data_NaCl\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M Fm-3m"


@pytest.mark.parametrize("source", ["NaCl", "Na Cl", "ClNa", "data_NaCl", "data_ClNa"])
def test_one_formula_in_any_dress(source: str) -> None:
    prompt = parse_prompt(source)
    assert prompt.text == "data_NaCl\n_crystallm_primitive_formula_units "
    assert prompt.request.conventional_units is None and prompt.source == source


def test_a_multiple_counts_the_conventional_cell() -> None:
    for source, formula, units in (("Na4Cl4", "NaCl", 4), ("Na2Cl2", "NaCl", 2), ("O2", "O", 2), ("Fe4O6", "Fe2O3", 2)):
        prompt = parse_prompt(source)
        assert prompt.text.startswith(f"data_{formula}\n") and prompt.request.conventional_units == units


def test_what_is_known_stands_in_the_text() -> None:
    assert parse_prompt("NaCl", "F m -3 m", 1).text == HEAD
    assert parse_prompt("NaCl", None, 2).text.endswith("units 2\n_symmetry_space_group_name_H-M")
    later = parse_prompt("NaCl", 225)
    assert later.text.endswith("units ") and later.request.space_groups == (225,)


def test_systems_and_nothing() -> None:
    assert parse_prompt(None).text == parse_prompt("").text == parse_prompt("data_").text == "data_"
    assert len(parse_prompt("Li-Fe-O").request.elements or ()) == 3


def test_condition_lines_may_stand_before() -> None:
    prompt = parse_prompt("# band_gap_ev +1.10\ndata_NaCl")
    assert prompt.text == "# band_gap_ev +1.10\ndata_NaCl\n_crystallm_primitive_formula_units "


def test_prefixes_end_at_any_lexeme(rules: Rules) -> None:
    text = HEAD + "\n_cell_length_a 5.60\n_cell_length_b 5.60\n_cell_length_c 5.60\n_cell_angle_alpha 90.0"
    text += "\n_cell_angle_beta 90.0\n_cell_angle_gamma 90.0\nloop_\n_atom_site_type_symbol\n_atom_site_Wyckoff_symbol"
    text += "\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nNa a 0.000 0.000 0.000\n"
    lines = text.splitlines(keepends=True)
    for k in range(2, len(lines) + 1):
        for prefix in ("".join(lines[:k]), "".join(lines[:k]).rstrip()):
            ids, make = begin(parse_prompt(prefix), rules)
            assert isinstance(make(), Full) and rules.tokenizer.decode(ids).strip() in text
    assert begin(parse_prompt(HEAD + "\n_cell_length_a"), rules)[0][-1] == rules.tokenizer.id("\n_cell_length_a ")


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("\n_cell_length_a 5.60\n_cell_length_b 5.61", r"line 5: got '5.61', wanted 5.60$"),
        ("\n_cell_length_a 5.60\n_cell_angle_beta 90.0", r"line 5: got '_cell_angle_beta', wanted .*_cell_length_b"),
        ("\n_cell_length_a 560.0", r"line 4: got '560.0', wanted length \('1.00'"),
        ("\n_cell_length_a 1.01", r"line 4: got '1.01', wanted .*…"),
    ],
)
def test_prefixes_that_are_no_crystal(tail: str, message: str, rules: Rules) -> None:
    with pytest.raises(PromptError, match=message):
        begin(parse_prompt(HEAD + tail), rules)


def test_formulas_out_of_order_in_a_prefix(rules: Rules) -> None:
    with pytest.raises(PromptError, match=r"'data_ClNa', line 1: got 'Na"):
        begin(parse_prompt("data_ClNa\n_crystallm_primitive_formula_units 1"), rules)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("NaCl", "Fm-4m"), "'Fm-4m' names no space group; the closest is 'Fm-3m'"),
        (("NaCl", 231), "231 is outside 1-230"),
        (("NaCl", None, 0), "from 1 to 999, got 0"),
        (("Na1000Cl",), "1000 Na in the reduced formula"),
        (
            ("Na4Cl4", "P4/mmm", 3),
            "no structure can have 3 formula units of NaCl in the primitive cell and 4 in the conventional cell",
        ),
        (
            ("Na3Cl3", "Fm-3m"),
            r"3 formula units of NaCl in the conventional cell in Fm-3m \(no. 225\); its Wyckoff positions hold 4, 24, "
            r"28, .*which is 1, 6, 7, .*in the primitive one.*the units asked for fit Pm-3m",
        ),
        (("NaCl", "P432", 1), r"in P432 \(no. 207\); its .* hold 24, .*; the units asked for fit Fm-3m, Pm-3m, F-43m"),
        (("CaTiO3", 225, 1), r"no structure can have 1 formula unit of CaTiO3 in the primitive cell in Fm-3m"),
        (("Na4Cl4", None, 3), "a conventional cell holds 1, 2, 3 or 4 times"),
    ],
)
def test_requests_that_no_structure_can_satisfy(arguments: tuple, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_prompt(*arguments)


def test_unsatisfiable_systems(rules: Rules) -> None:
    """P2_1 has pairs of atoms only: with one formula unit in the cell every count is even, and none is reduced."""
    with pytest.raises(PromptError, match="nothing can follow: no formula"):
        begin(parse_prompt("Li-O", "P2_1", 1), rules)
    with pytest.raises(PromptError, match="nothing can follow: no formula"):
        begin(parse_prompt(None, "P2_1", 1), rules)
    begin(parse_prompt("Li-O", "P2_1", 2), rules)


def test_weaker_constraints_refuse_what_they_cannot_hold(rules: Rules) -> None:
    with pytest.raises(PromptError, match="chemical system needs constraints=full"):
        begin(parse_prompt("Li-Fe-O"), rules, "syntax")
    for mode in ("none", "syntax"):
        with pytest.raises(PromptError, match=f"units in the conventional cell needs constraints=full, got .*{mode}"):
            begin(parse_prompt("Na4Cl4"), rules, mode)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="cannot ask for a space group"):
        begin(parse_prompt("NaCl", 225), rules, "none")
    begin(parse_prompt("NaCl", 225, 1), rules, "none")


def test_files_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("NaCl\n\n# a comment\n  Li-Fe-O \n")
    (tmp_path / "one.cif").write_text(HEAD)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.cif").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["NaCl", "Li-Fe-O"]
    assert read_prompts(tmp_path / "one.cif") == [HEAD]
    assert read_prompts("NaCl") == ["NaCl"] and read_prompts(None) == [""] and read_prompts(("a", "b")) == ["a", "b"]
    (tmp_path / "lines.txt").write_text("NaCl\n# density_g_per_cm3 +2.10\ndata_NaCl\n")
    with pytest.raises(PromptError, match=r"lines\.txt, line 2: '# density_g_per_cm3 \+2\.10' goes with the text"):
        read_prompts(tmp_path / "lines.txt")
    conditioned = "# density_g_per_cm3 +2.10\ndata_NaCl\n"
    (tmp_path / "conditioned.cif").write_text(conditioned)
    assert read_prompts(tmp_path / "conditioned.cif") == [conditioned]
    for name in ("empty.txt", "empty.cif"):
        with pytest.raises(PromptError, match="no prompt in it"):
            read_prompts(tmp_path / name)
    with pytest.raises(PromptError, match="cannot read prompts"):
        read_prompts(tmp_path / "binary.txt")


@pytest.mark.parametrize("name", ["nofile.txt", "nofile.CIF", "nofile.csv", "prompts/nofile", "./nofile"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match=f"{Path(name)}: no such file$"):
        read_prompts(name)
    (tmp_path / "prompts").mkdir()
    with pytest.raises(PromptError, match=r"prompts: cannot read prompts from it: .*directory"):
        read_prompts(str(tmp_path / "prompts"))


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_an_empty_prompt_is_no_request_for_anything(prompt: str) -> None:
    with pytest.raises(PromptError, match="an empty prompt; leave it out to ask for anything"):
        read_prompts(prompt)


def test_a_bad_line_of_a_file_is_named(random_gpt: GPT, tokenizer: CIFTokenizer, tmp_path: Path) -> None:
    """What cannot be read, and what can but has no structure."""
    generator = Generator(random_gpt, tokenizer)
    path = tmp_path / "prompts.txt"
    path.write_text("# formulas\nNaCl\n\nNaXx\n")
    with pytest.raises(PromptError, match=r"prompts\.txt, line 4: 'NaXx', position 3: 'Xx' is no element"):
        generator.prompts(GenerateConfig(str(path)))
    path.write_text("# systems\nLi-O\n")
    with pytest.raises(PromptError, match=r"prompts\.txt, line 2: 'Li-O': nothing can follow: no formula"):
        generator.generate(GenerateConfig(str(path), "P2_1", 1, num=1))


def test_constraints_of_one_prompt_are_independent(rules: Rules) -> None:
    _, make = begin(parse_prompt("NaCl", 225, 1), rules)
    first, second = make(), make()
    assert isinstance(first, Full) and isinstance(second, Full)
    before = second.state
    first.advance(int(rules.forced_token[first.state]))
    assert second.state == before
    assert np.shares_memory(first.lengths, second.lengths) is False
