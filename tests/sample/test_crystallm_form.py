"""Released CrystaLLM models: texts made by pymatgen alone, and a model that has learnt two of them by heart."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Structure
from pymatgen.io.cif import CifWriter

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.cif import CIFError, parse_cif
from crystallm.interop import to_structure
from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import import_crystallm
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.records import CIFRecord, read_records
from crystallm.sample.constraints import DeadEnd
from crystallm.sample.crystallm_form import CrystaLLMForm
from crystallm.sample.crystallm_syntax import MAX_ENCODED, SLOT, CrystaLLMSyntax, Words, words_of
from crystallm.sample.crystallm_text import atom_types, cell_formula, full_cif, head, structural_formula
from crystallm.sample.engine import Engine, Job
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator, generate, rows_that_fit
from crystallm.sample.logits import Draw
from crystallm.sample.prompts import read_prompts
from crystallm.sample.report import run, table
from tokenizer import CIFTokenizer, GrammarError
from tokenizer.crystallm_v1 import normalize_v1

CRYSTALS = ("NaCl", "SrTiO3", "Si", "rutile", "hematite", "quartz", "ZrO2")
LEARNT = ("NaCl", "Si")
SMALL = GPTConfig(
    n_layer=2,
    n_head=2,
    n_embd=64,
    block_size=400,
    norm="layernorm",
    position="learned",
    mlp="gelu",
    number_embedding=False,
    loss="full",
)


@pytest.fixture(scope="module")
def v1() -> CIFTokenizer:
    return CIFTokenizer("crystallm_v1", on_unknown="raise")


@pytest.fixture(scope="module")
def words(v1: CIFTokenizer) -> Words:
    return words_of(v1.vocabulary)


@pytest.fixture(scope="module")
def form(v1: CIFTokenizer) -> CrystaLLMForm:
    return CrystaLLMForm(v1)


@pytest.fixture(scope="module")
def structures(root: Path) -> dict[str, Structure]:
    return {name: to_structure(parse_cif((root / f"tests/cifs/{name}.cif").read_text())[0]) for name in CRYSTALS}


@pytest.fixture(scope="module")
def texts(structures: dict[str, Structure]) -> dict[str, str]:
    return {name: crystallm_text(structure) for name, structure in structures.items()}


def crystallm_text(structure: Structure) -> str:
    """As CrystaLLM's preprocessing makes it: pymatgen's symmetrised CIF, four decimals, one operator, atom types."""
    text = str(CifWriter(structure, symprec=0.1))
    text = re.sub(r"(_symmetry_equiv_pos_as_xyz\n).*?(?=\nloop_)", r"\1  1  'x, y, z'", text, flags=re.DOTALL)
    text = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4f}", text)
    match = re.search(r"_chemical_formula_sum\s+'?(.*?)'?\n", text)
    assert match is not None
    rows = "".join(
        f"{e} {float(e.X):.4f} {float(e.atomic_radius):.4f} {float(e.average_ionic_radius):.4f}\n"
        for e in sorted(Composition(match[1]).elements)
    )
    names = ("symbol", "electronegativity", "radius", "ionic_radius")
    block = "loop_\n" + "".join(f"_atom_type_{name}\n" for name in names) + rows
    text = re.sub(r"data_.*\n", f"data_{match[1].replace(' ', '')}\n", text, count=1)
    return normalize_v1(text.replace("_symmetry_space_group", f"{block}_symmetry_space_group"))


# ---------------------------------------------------------------- the text


def test_atom_types_are_pymatgens(v1: CIFTokenizer) -> None:
    elements = [v1.token(t) for t in v1.vocabulary.classes["element"].tolist()]
    assert set(atom_types()) == set(elements) and len(elements) == 89
    for symbol, (electronegativity, radius, ionic) in atom_types().items():
        element = Element(symbol)
        if not math.isnan(element.X):
            assert electronegativity == f"{float(element.X):.4f}"
        if element.atomic_radius is not None:
            assert radius == f"{float(element.atomic_radius):.4f}"
        assert ionic == f"{float(element.average_ionic_radius):.4f}"
    # What pymatgen lacks, CrystaLLM fills in: Allen's electronegativities and van der Waals radii.
    assert atom_types()["He"] == ("4.16", "1.4", "0.0000") and atom_types()["Kr"][:2] == ("3.0000", "2.02")


def test_formulas_are_pymatgens() -> None:
    rng = random.Random(0)
    symbols = sorted(set(atom_types()) - {"He", "Ne", "Ar"})
    compositions = [
        {symbol: rng.choice((1, 1, 2, 3, 4, 6, 8, 12)) for symbol in rng.sample(symbols, rng.randint(1, 5))}
        for _ in range(500)
    ]
    compositions += [{"Na": 4, "O": 4}, {"O": 8}, {"Mg": 3, "P": 2, "O": 8}, {"Cl": 2, "O": 2, "H": 2}]
    for composition in compositions:
        theirs = Composition(composition)
        formula, units = theirs.get_integer_formula_and_factor()
        assert structural_formula(composition) == (formula, int(units))
        values = [Element(symbol).X for symbol in composition]
        if len(set(values)) == len(values):  # pymatgen leaves equal electronegativities as they came
            assert cell_formula(composition) == theirs.formula.replace(" ", "")


def test_head_is_the_beginning_of_the_text(texts: dict[str, str], structures: dict[str, Structure]) -> None:
    assert texts["SrTiO3"].startswith(head({"O": 3, "Ti": 1, "Sr": 1}, "Pm-3m"))
    assert texts["NaCl"].startswith(head({"Na": 4, "Cl": 4}, "Fm-3m"))


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_full_cif_is_the_crystal(name: str, texts: dict[str, str], structures: dict[str, Structure]) -> None:
    cif = full_cif(texts[name], {"seed": 3})
    read = Structure.from_str(cif, fmt="cif")
    assert StructureMatcher(primitive_cell=True, scale=False).fit(read, structures[name])
    conventional = Composition(texts[name].partition("\n")[0].removeprefix("data_"))
    assert read.composition == conventional, "no atom twice, none lost"
    assert "_atom_type" not in cif and cif.startswith("# crystallm.provenance.seed 3\n")
    volume = re.search(r"_cell_volume (\S+)", cif)
    assert volume is not None and float(volume[1]) == pytest.approx(read.volume, rel=1e-6)


def test_special_coordinates_become_exact(texts: dict[str, str]) -> None:
    assert re.search(r"(?m)^Si .* 0\.(?:3333|6667)", texts["quartz"])
    assert re.search(r"(?m)^Si .* 0\.(?:33333333|66666667)", full_cif(texts["quartz"]))


def test_two_origins(texts: dict[str, str]) -> None:
    """The texts put silicon at 0, 0, 1/2: origin choice 1, in which that has multiplicity 8 (in choice 2 it has 16)."""
    assert re.search(r"^Si Si0 8 0\.0000 0\.0000 0\.5000", texts["Si"], re.MULTILINE)
    assert len(Structure.from_str(full_cif(texts["Si"]), fmt="cif")) == 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("_symmetry_space_group_name_H-M Pm-3m\n", ""), "bad_symmetry: no line _symmetry_space_group_name_H-M"),
        (("H-M Pm-3m", "H-M Pm-4m"), "bad_symmetry: 'Pm-4m' names no space group"),
        (("1 'x, y, z'\n", ""), "bad_symmetry: 0 loops of the operator"),
        (("_cell_length_b", "_cell_length_a"), "syntax|no_cell"),
        (("O O2 3", "Qq O2 3"), "unknown_element"),
    ],
)
def test_what_is_no_crystal(change: tuple[str, str], reason: str, texts: dict[str, str]) -> None:
    with pytest.raises(CIFError, match=reason):
        full_cif(texts["SrTiO3"].replace(*change))


# ---------------------------------------------------------------- the syntax


def refused_at(constraint: CrystaLLMSyntax, ids: list[int]) -> int | None:
    """Index of the first token that is not allowed."""
    for position, token in enumerate(ids):
        try:
            choice = constraint.choice()
            constraint.advance(token)
        except (GrammarError, DeadEnd):
            return position
        assert choice.slot == SLOT and (choice.mask is None or choice.mask[token])
    return None


def test_kept_texts_do_not_grow_for_ever(words: Words) -> None:
    for k in range(MAX_ENCODED + 10):
        words.encode(f"{k}")
    assert words.encode.cache_info().currsize == MAX_ENCODED
    with pytest.raises(ValueError, match="é"):
        words.encode("é")


@pytest.mark.parametrize("name", CRYSTALS)
def test_real_texts_are_allowed(name: str, texts: dict[str, str], words: Words, v1: CIFTokenizer) -> None:
    constraint = CrystaLLMSyntax(words)
    ids = v1.encode(texts[name])
    assert refused_at(constraint, ids[:-1]) is None and not constraint.finished
    constraint.advance(ids[-1])
    assert constraint.finished


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_cell_length_b 3", "_cell_length_c 3"),  # the order of keywords
        ("_cell_angle_beta 90.0000", "_cell_angle_beta 90.000"),  # four decimals
        ("H-M Pm-3m", "H-M Fm-3m"),  # a group that cannot hold five atoms
        ("Tables_number 221", "Tables_number 225"),
        ("structural SrTiO3", "structural SrTiO2"),
        ("'Sr1 Ti1 O3'", "'Sr1 Ti1 O2'"),
        ("Z 1\n", "Z 2\n"),
        ("O O2 3", "F F2 3"),  # not in the formula
        ("O O2 3", "O O2 6"),  # more than are left
        ("O O2 3", "O O3 3"),  # labels count on
        ("O O2 3", "O O2 2"),  # no position of Pm-3m holds two
        ("\n\n", "\nO O3 3 0.0000 0.0000 0.5000 1\n\n"),  # no atoms are left
    ],
)
def test_what_the_syntax_refuses(old: str, new: str, texts: dict[str, str], words: Words, v1: CIFTokenizer) -> None:
    text = texts["SrTiO3"]
    assert text.count(old) == 1
    ids, wrong = v1.encode(text), v1.encode(text.replace(old, new))
    first = next(k for k, (a, b) in enumerate(zip(ids, wrong, strict=False)) if a != b)
    assert refused_at(CrystaLLMSyntax(words), wrong) == first


def test_points_are_taken_once(words: Words, v1: CIFTokenizer, texts: dict[str, str]) -> None:
    """Pm-3m has two positions of multiplicity 1, a and b: strontium and titanium take them, and oxygen cannot."""
    beginning = texts["SrTiO3"].partition("O O2")[0]
    assert refused_at(CrystaLLMSyntax(words), v1.encode(beginning + "O O2 1 ")) == len(v1.encode(beginning + "O O2 "))


def test_a_constraint_can_be_copied(words: Words, v1: CIFTokenizer, texts: dict[str, str]) -> None:
    """What searches need."""
    ids = v1.encode(texts["rutile"])
    constraint = CrystaLLMSyntax(words)
    for token in ids[: len(ids) // 2]:
        constraint.advance(token)
    other = copy.deepcopy(constraint, {id(words): words})
    for one in (constraint, other):
        assert refused_at(one, ids[len(ids) // 2 :]) is None and one.finished


def test_a_cell_without_volume_is_a_dead_end(words: Words, v1: CIFTokenizer) -> None:
    beginning = head({"Na": 1}, "P1")[:-1]
    for name in ("length_a", "length_b", "length_c"):
        beginning += f"\n_cell_{name} 4.0000"
    flat = beginning + "".join(f"\n_cell_angle_{name} 150.0000" for name in ("alpha", "beta", "gamma"))
    constraint = CrystaLLMSyntax(words)
    for token in v1.encode(flat):
        constraint.advance(token)
    assert not constraint.finished
    with pytest.raises(DeadEnd, match="its volume is 0"):
        constraint.choice()


# ---------------------------------------------------------------- prompts


def test_prompts(form: CrystaLLMForm, texts: dict[str, str]) -> None:
    assert form.prompt("Na2Cl2").text == form.prompt("data_Na2Cl2\n").text == "data_Na2Cl2\n"
    assert form.prompt("Cl Na").text == "data_Na1Cl1\n", "each symbol stands for one atom of the cell"
    assert form.prompt("O3 Ti Sr", "P m -3 m").text == head({"Sr": 1, "Ti": 1, "O": 3}, "Pm-3m")
    assert form.prompt("").text == form.prompt("data_").text == "data_"
    assert form.prompt("Li-Fe-O").request.elements is not None
    whole = texts["SrTiO3"]
    cut = whole[: whole.index("_cell_length_b")]
    assert form.prompt(cut).text == form.prompt("# made by pymatgen\n\n" + cut.replace(" ", "   ")).text == cut
    with_group = whole[: whole.index("\n_cell_length_a")]
    assert form.prompt(with_group).text == with_group + "\n", "the group's token is told by the newline behind it"


def test_a_file_that_crystallm_writes_is_one_prompt(form: CrystaLLMForm, tmp_path: Path) -> None:
    """Whatever its name; a file of one prompt a line stays one."""
    text = head({"Na": 4, "Cl": 4}, "Fm-3m")
    (tmp_path / "prompt.txt").write_text(text)
    (tmp_path / "two.txt").write_text("data_Na2Cl2\nK1Cl1\n")
    assert [form.prompt(source).text for source in read_prompts(str(tmp_path / "prompt.txt"))] == [text]
    texts = [form.prompt(source).text for source in read_prompts(str(tmp_path / "two.txt"))]
    assert texts == ["data_Na2Cl2\n", "data_K1Cl1\n"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source": "PoO2"}, r"Po has no token in this vocabulary; without one are Po, At, Rn"),
        ({"source": "Fm-O"}, "Fm has no token"),
        ({"source": "Na1Cl1", "space_group": "P6"}, r"P6 \(no. 168\) has no token.*P4_222, P6, P432"),
        ({"source": "Na1Cl1", "space_group": "Pxyz"}, "names no space group"),
        ({"source": "NaCl", "formula_units": 1}, "Na4Cl4 for rock salt"),
        ({"source": "NaXx"}, "'Xx' is no element"),
        ({"source": "C1000"}, "at most 999 can be written"),
    ],
)
def test_prompts_that_cannot_be_asked(asked: dict, message: str, form: CrystaLLMForm) -> None:
    with pytest.raises(PromptError, match=message):
        form.prompt(**asked)


@pytest.mark.parametrize(
    ("source", "space_group", "mode", "message"),
    [
        ("NaCl", "Fm-3m", "syntax", r"Fm-3m \(no. 225\) cannot hold Na1Cl1; it can hold Na4Cl4"),
        ("NaCl", None, "full", "constraints none and syntax"),
        ("Li-Fe-O", None, "none", "cannot ask for what the text does not state"),
        ("data_Na1Cl1\n_cell_length_a", None, "syntax", r"line 2, at '_cell_length_a'.*expected 'loop_'"),
        ("data_Na1\n§\n", None, "none", "no token for '§'"),
        ("", "Fm-3m", "none", "cannot ask for what the text does not state"),
    ],
)
def test_what_cannot_be_begun(source: str, space_group: str, mode: str, message: str, form: CrystaLLMForm) -> None:
    with pytest.raises(PromptError, match=message):
        form.begin(form.prompt(source, space_group), mode)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no constraint on distances"):
        form.begin(form.prompt("NaCl"), "syntax", 1.0)


# ---------------------------------------------------------------- models


def write_crystallm(path: Path, model: GPT, tokenizer: CIFTokenizer) -> Path:
    """In the published format, tensor names included, with an optimizer's state and the prefix of compiled models."""
    names = {"embedding.plain": "wte.weight", "wpe.weight": "wpe.weight"}
    weights = {}
    for name, parameter in model.named_parameters():
        theirs = names.get(name, re.sub(r"^blocks\.", "h.", name))
        weights[f"_orig_mod.transformer.{theirs}"] = parameter.detach().clone()
    weights["_orig_mod.lm_head.weight"] = weights["_orig_mod.transformer.wte.weight"]
    config = model.config
    arguments = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "bias")}
    arguments |= {"vocab_size": tokenizer.vocab_size, "dropout": 0.1}
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5)}}, "param_groups": [{"lr": 1e-3}]}
    saved = {"model": weights, "model_args": arguments, "optimizer": state, "iter_num": 150}
    torch.save({**saved, "best_val_loss": torch.tensor(0.25), "config": {"out_dir": "out"}}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(texts: dict[str, str], v1: CIFTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CrystaLLM ckpt.pt that has learnt two texts by heart, in 150 steps."""
    torch.manual_seed(0)
    spec = token_spec(v1, "full")
    model = GPT(SMALL, spec)
    batch = make_batch([np.array(v1.encode(texts[name])) for name in LEARNT], spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch).mean.backward()
        optimizer.step()
    return write_crystallm(tmp_path_factory.mktemp("crystallm") / "ckpt.pt", model, v1)


@pytest.mark.parametrize("mode", [None, "none"])
def test_what_was_learnt_is_written(mode: str, checkpoint: Path, texts: dict[str, str], structures: dict) -> None:
    for name in LEARNT:
        prompt = texts[name].partition("\n")[0].removeprefix("data_")
        settings = {"num": 2, "seed": 0, "model": str(checkpoint), "device": "cpu", "temperature": 0.0}
        records = generate(prompt, constraints=mode, **settings)
        for record in records:
            assert record.rejected_by is None, record.reason
            # With the syntax, the volume is that of the written cell, whose lengths are rounded.
            known = "_cell_volume .*" if mode is None else "(?!)"
            written = record.provenance["model_text"]
            assert re.sub(known, "", written) == re.sub(known, "", texts[name]), "each token of it"
            assert record.provenance["settings"]["constraints"] == (mode or "syntax")
            assert StructureMatcher(scale=False).fit(record.structure, structures[name])
            read = Structure.from_str(record.cif, fmt="cif")
            assert StructureMatcher(scale=False).fit(read, structures[name])
            unit = AsymmetricUnit.from_text(record.text)  # what deduplication, novelty and ranking read
            assert unit.reduced_formula == structures[name].composition.reduced_formula


def test_with_space_group_and_unique(checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = GenerateConfig(
        prompt="Na4Cl4",
        space_group="F m -3 m",
        num=3,
        seed=0,
        temperature=0.3,
        model=str(checkpoint),
        device="cpu",
        unique=True,
        out=str(tmp_path / "out"),
    )
    tally = run(config)
    assert (tally.counts.n_valid, tally.counts.rejected_by) == (1, {"duplicate": 2})
    printed = capsys.readouterr().out
    assert re.search(r"gen-000000 +NaCl +Fm-3m \(225\) +5\.\d\d", printed)
    assert "formulas of prompts are the atoms of the conventional cell" in printed and "kept 1 of 3" in printed
    assert len(list((tmp_path / "out").glob("*.cif"))) == 1
    [written] = read_records(tmp_path / "out")
    bare = replace(written, text="")
    assert "Fm-3m (225)" in table([bare]), "a crystal without canonical text has its line, too"


def test_log_likelihood_is_over_the_whole_vocabulary(checkpoint: Path, v1: CIFTokenizer) -> None:
    """Cached, in batches, forced tokens fed together: the same as one full pass over the finished text."""
    generator = Generator.load(checkpoint, "cpu")
    config = GenerateConfig(prompt=("Sr1Ti1O3", "Na4Cl4"), num=3, seed=1, temperature=2.0, rules="none")
    records = generator.generate(config)
    assert len({record.provenance.get("model_text") for record in records}) > 2
    for record in records:
        text = record.provenance.get("model_text", record.text)
        ids = torch.tensor(v1.encode(text))
        n_prompt = len(v1.encode(text.partition("\n")[0] + "\n"))
        with torch.no_grad():
            logits = generator.model(ids[None])[0] @ generator.model.embedding.plain.T  # (T, 371)
        log_probs = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        expected = float(log_probs[n_prompt - 1 :].sum())
        assert record.scores["log_likelihood_nats"] == pytest.approx(expected, abs=1e-3)
        n_tokens = len(ids) - n_prompt
        assert record.scores["log_likelihood_per_token"] == pytest.approx(expected / n_tokens, abs=1e-5)


def test_an_import_draws_the_same(checkpoint: Path, tmp_path: Path) -> None:
    folder = import_crystallm(checkpoint, tmp_path / "imported")
    settings = {"prompt": "Si8", "num": 4, "seed": 5, "device": "cpu", "temperature": 1.5, "rules": "none"}
    direct, imported = (generate(model=str(model), **settings) for model in (checkpoint, folder))
    assert [record.cif for record in direct] != [record.cif for record in imported], "provenance names the model"
    strip = lambda record: re.sub(r"(?m)^#.*\n", "", record.cif)  # noqa: E731
    assert [strip(record) for record in direct] == [strip(record) for record in imported]
    info = json.loads((folder / "config.json").read_text())
    assert info["vocabulary"] == "crystallm_v1" and info["crystallm"] == {"iter_num": 150, "best_val_loss": 0.25}


def test_batches_do_not_show(checkpoint: Path) -> None:
    settings = {"prompt": "Sr1Ti1O3", "seed": 7, "model": str(checkpoint), "device": "cpu", "rules": "none"}
    whole = [record.text for record in generate(num=5, temperature=1.5, **settings)]
    assert [record.text for record in generate(num=5, temperature=1.5, batch=2, **settings)] == whole


@pytest.fixture(scope="module")
def untrained(v1: CIFTokenizer) -> Generator:
    torch.manual_seed(1)
    return Generator(GPT(replace(SMALL, n_embd=32, bias=True, block_size=700), token_spec(v1, "full")).eval(), v1)


@pytest.mark.filterwarnings("ignore:Incorrect stoichiometry")  # a multiplicity that the coordinates do not have
@pytest.mark.parametrize("asked", ["Na4Cl4 Fm-3m", "Sr1Ti1O3", "Si8 Fd-3m", "Fe12O18 R-3c"])
def test_syntax_holds_whatever_the_model(asked: str, untrained: Generator, v1: CIFTokenizer) -> None:
    """Each sample that ends is a CIF that gemmi and pymatgen read, with the formula that was asked for."""
    prompt, _, group = asked.partition(" ")
    config = GenerateConfig(prompt=prompt, space_group=group or None, num=8, seed=0, rules="none")
    records = untrained.generate(config)
    ended = [record for record in records if record.rejected_by not in ("unfinished", "dead_end")]
    assert len(ended) >= 4
    for record in ended:
        text = record.provenance.get("model_text", record.text)
        assert v1.decode(v1.encode(text)) == text == normalize_v1(text)
        rows = re.findall(r"(?m)^([A-Z][a-z]?) \1(\d+) (\d+) (?:-?[01]\.\d{4} ){3}1(?:\.0)?$", text)
        assert [int(number) for _, number, _ in rows] == list(range(len(rows)))
        counts = Composition("".join(f"{symbol}{count}" for symbol, _, count in rows))
        assert counts == Composition(prompt) == Composition(text.partition("\n")[0].removeprefix("data_"))
        if record.rejected_by is None:
            Structure.from_str(record.cif, fmt="cif")


def test_chemical_systems_and_nothing(untrained: Generator, v1: CIFTokenizer) -> None:
    records = untrained.generate(GenerateConfig(prompt="O-Fe-Li", num=5, seed=0, rules="none"))
    for record in records:
        text = record.provenance.get("model_text", record.text)
        assert re.match(r"data_Li\d+Fe\d+O\d+\n", text)
    free = untrained.generate(GenerateConfig(num=5, seed=0, rules="none"))
    assert all(re.match(r"data_([A-Z][a-z]?\d+)+", r.provenance.get("model_text", r.text)) for r in free)


def test_the_unknown_token_is_never_drawn(v1: CIFTokenizer, form: CrystaLLMForm) -> None:
    """By a model that gives it nearly all probability at every place."""
    model = GPT(replace(SMALL, n_layer=1, n_embd=8, bias=True, block_size=60), token_spec(v1, "full")).eval()
    unknown = v1.id("<unk>")
    with torch.no_grad():
        model.ln_f.weight.zero_()  # type: ignore[union-attr, operator]
        model.ln_f.bias.copy_(torch.ones(8))  # type: ignore[union-attr, operator, arg-type]
        model.embedding.plain[unknown] = 10.0
    for mode in ("none", "syntax"):
        ids, new_constraint = form.begin(form.prompt("NaCl"), mode)  # type: ignore[arg-type]
        engine = Engine(model, form.slot_tokens)
        for sample in engine.run([Job(k, ids, new_constraint) for k in range(4)], 0, Draw()):
            assert len(sample.ids) == 60 and unknown not in sample.ids
            assert sample.log_mass < -50


def test_a_sample_that_is_no_crystal_says_why(form: CrystaLLMForm, texts: dict[str, str]) -> None:
    record = CIFRecord("x", "", text=texts["NaCl"].replace("Cl Cl1 4 ", "Cl Cl1 4 0.0000 "))
    assert form.finish(record).rejected_by == "syntax"
    group = CIFRecord("x", "", text=texts["NaCl"].replace("Fm-3m", "Fmmmm"))
    assert form.finish(group).rejected_by == "bad_symmetry"


def test_the_cache_fits_in_memory(v1: CIFTokenizer) -> None:
    """Of the larger released model (16 layers, 1024 wide) a sequence takes 508 MB: 32 + 64 + ... + 2048 positions."""
    with torch.device("meta"):
        shape = replace(SMALL, n_layer=16, n_head=16, n_embd=1024, block_size=2048)
        model = GPT(shape, token_spec(v1, "full"))
    assert rows_that_fit(model) == 3 * 2**30 // (2 * 16 * 1024 * (4096 - 32) * 4) == 6


def test_scripts(
    checkpoint: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: starting another costs seconds."""

    def script(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(root / "bin" / name), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    assert "bytes written to imported" in script("import_crystallm.py", str(checkpoint), "imported")
    asked = ("--prompt", "Na4Cl4", "--num", "2", "--seed", "0", "--temperature", "0.3", "--device", "cpu")
    assert "kept 2 of 2" in script("sample.py", "--model", "imported", *asked)
    for wrong in (("import_crystallm.py", str(root / "README.md"), "other"), ("import_crystallm.py", "no.pt", "other")):
        with pytest.raises(SystemExit):
            script(*wrong)
        printed = capsys.readouterr().err
        assert "no CrystaLLM checkpoint" in printed or "no such file" in printed
