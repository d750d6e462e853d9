"""The logits processor in `transformers`, beside our engine and our likelihoods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.hub import BUNDLED_FOLDER
from crystallm.model.gpt import GPT
from crystallm.model.hf import export_hf
from crystallm.resources import resource_path
from crystallm.sample.constraints import Choice, DeadEnd, Full
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.prompts import parse_prompt
from tokenizer import CIFTokenizer, Grammar

transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf`)")

from crystallm.sample.hf import DEAD_END_SCORE, GrammarLogitsProcessor  # noqa: E402  (it needs transformers)

PROMPTS = ["NaCl", "Sr Ti O3", "Na4Cl4"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.load(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(resource_path(BUNDLED_FOLDER), tmp_path_factory.mktemp("hf") / "bundled")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def without_padding(ids: torch.Tensor, tokenizer: CIFTokenizer) -> np.ndarray:
    return ids[ids != tokenizer.pad_id].numpy()


@pytest.mark.parametrize("mode", ["syntax", "full"])
def test_what_is_drawn_parses(
    theirs: transformers.PreTrainedModel,
    loaded: transformers.PreTrainedTokenizerBase,
    generator: Generator,
    tokenizer: CIFTokenizer,
    mode: str,
):
    """Prompts of different lengths in one batch; the scores of what was drawn add up to our log-likelihood."""
    torch.manual_seed(0)
    prompts = PROMPTS if mode == "full" else [*PROMPTS[:2], "NaCl"]  # a conventional cell's units need full
    processor = GrammarLogitsProcessor(prompts, mode=mode)
    inputs = loaded(processor.texts, return_tensors="pt", padding=True)
    drawn = theirs.generate(
        **inputs,
        logits_processor=[processor],
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = theirs.compute_transition_scores(drawn.sequences, drawn.scores, normalize_logits=False)
    assert len(drawn.sequences) == 9 and len(processor.dead_ends) < (4 if mode == "full" else 1)
    grammar = Grammar(tokenizer)
    for row, ids in enumerate(drawn.sequences):
        text = loaded.decode(ids, skip_special_tokens=True)
        whole = without_padding(ids, tokenizer)
        assert text.startswith(processor.texts[row // 3])
        assert grammar.is_final(grammar.state_after(whole)) == (row not in processor.dead_ends)
        if row in processor.dead_ends:
            continue
        unit = AsymmetricUnit.from_text(text)
        assert unit.reduced_formula == ["NaCl", "SrTiO3", "NaCl"][row // 3]
        if mode == "full":
            composition = unit.to_crystal().composition
            counts = [composition[element] for element in ("Na Cl", "Sr Ti O", "Na Cl")[row // 3].split()]
            assert len({n / k for n, k in zip(counts, ([1, 1], [1, 1, 3], [4, 4])[row // 3], strict=True)}) == 1
            assert row // 3 != 2 or counts == [4, 4]  # formula units of the conventional cell
        given = len(tokenizer.encode(processor.texts[row // 3]))
        wanted, _ = generator.model.log_likelihood([whole], [given])
        torch.testing.assert_close(scores[row].sum(), wanted[0], atol=1e-3, rtol=1e-4)


def test_greedily_both_write_the_same(
    theirs: transformers.PreTrainedModel, loaded: transformers.PreTrainedTokenizerBase, generator: Generator
):
    asked = [parse_prompt("NaCl"), parse_prompt("Ca2SiO4"), parse_prompt("ZnO", space_group=186)]
    processor = GrammarLogitsProcessor(asked)
    inputs = loaded(processor.texts, return_tensors="pt", padding=True)
    ids = theirs.generate(**inputs, logits_processor=[processor], do_sample=False)
    config = GenerateConfig(num=1, temperature=0, rules="none", seed=0)
    assert [loaded.decode(row, skip_special_tokens=True) for row in ids] == [
        record.text for record in generator.generate_from(asked, config)
    ]


def test_beams_change_rows(
    theirs: transformers.PreTrainedModel,
    loaded: transformers.PreTrainedTokenizerBase,
    generator: Generator,
    tokenizer: CIFTokenizer,
):
    """A row goes on as another's continuation; what is found is at least as likely as the greedy choice."""

    def likelihood(**settings: object) -> float:
        processor = GrammarLogitsProcessor(["Sr Ti O3"])
        inputs = loaded(processor.texts, return_tensors="pt")
        ids = theirs.generate(**inputs, logits_processor=[processor], do_sample=False, **settings)
        assert AsymmetricUnit.from_text(loaded.decode(ids[0], skip_special_tokens=True)).reduced_formula == "SrTiO3"
        return float(
            generator.model.log_likelihood([without_padding(ids[0], tokenizer)], [inputs.input_ids.shape[1]])[0]
        )

    assert likelihood(num_beams=4, length_penalty=0.0) >= likelihood()


def follow(processor: GrammarLogitsProcessor, rows: list[list[int]]) -> torch.Tensor:
    """(B, vocab_size) from scores that are all 0."""
    return processor(torch.tensor(rows), torch.zeros(len(rows), processor.tokenizer.vocab_size))


def test_masks_step_by_step(tokenizer: CIFTokenizer):
    pad, end = tokenizer.pad_id, tokenizer.end_id
    processor = GrammarLogitsProcessor(["NaCl", "data_"], mode="syntax")
    first, second = (tokenizer.encode(text) for text in processor.texts)
    second = [*[pad] * (len(first) - len(second)), *second]
    scores = follow(processor, [first, second])
    integers, elements = (tokenizer.vocabulary.classes[name] for name in ("integer", "formula_element"))
    assert torch.isfinite(scores[0]).nonzero().flatten().tolist() == sorted(integers.tolist())
    assert torch.isfinite(scores[1]).nonzero().flatten().tolist() == sorted(elements.tolist())
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2))
    one, keyword = tokenizer.encode("1\n_symmetry_space_group_name_H-M")
    scores = follow(processor, [[*first, one], [*second, int(elements[0])]])
    assert scores[0].argmax() == keyword and scores[0, keyword] == 0 and torch.isfinite(scores[0]).sum() == 1
    text = processor.texts[0] + (
        "1\n_symmetry_space_group_name_H-M P1\n_cell_length_a 5.00\n_cell_length_b 5.00\n_cell_length_c 5.00"
        "\n_cell_angle_alpha 90.0\n_cell_angle_beta 90.0\n_cell_angle_gamma 90.0\nloop_\n_atom_site_type_symbol"
        "\n_atom_site_Wyckoff_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z"
        "\nNa a 0.000 0.000 0.000"
    )
    site = tokenizer.encode(text)
    jumped = GrammarLogitsProcessor("NaCl", mode="syntax")  # a row whose beginning it has not seen token by token
    assert torch.isfinite(follow(jumped, [site])[0, end])
    for after in ([*site, end], [*site, end, pad], [*site, end, pad, pad]):
        assert torch.isfinite(follow(jumped, [after])).nonzero().tolist() == [[0, pad]]
    assert torch.isfinite(follow(jumped, [tokenizer.encode(jumped.texts[0])])).sum() == len(integers)  # another call


def test_a_dead_end_is_told_and_ends_the_row(monkeypatch: pytest.MonkeyPatch, tokenizer: CIFTokenizer):
    processor = GrammarLogitsProcessor(["NaCl", "KCl"])
    rows = [tokenizer.encode(text) for text in processor.texts]
    original = Full.choice

    def choice(self: Full) -> Choice:
        if self.counts and self.formula.ranks[0] == rank:
            raise DeadEnd("no place for Na at a")
        return original(self)

    rank = processor._begun[0][1]().formula.ranks[0]
    monkeypatch.setattr(Full, "choice", choice)
    scores = follow(processor, rows)
    assert processor.dead_ends == {0: "no place for Na at a"}
    assert scores[0].argmax() == tokenizer.pad_id and scores[0, tokenizer.pad_id] == DEAD_END_SCORE
    assert torch.isfinite(scores[0]).sum() == 1 < torch.isfinite(scores[1]).sum()


def test_an_untrained_model_writes_crystals_or_says_why(random_gpt: GPT, tokenizer: CIFTokenizer):
    """Dead ends among them: what has no end is listed, all else has its formula."""
    processor = GrammarLogitsProcessor([parse_prompt("SiO2", formula_units=1)] * 12)
    ids = torch.tensor([tokenizer.encode(text) for text in processor.texts])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        while not (ids[:, -1] == tokenizer.pad_id).all() and ids.shape[1] < 100:
            scores = processor(ids, random_gpt(ids)[:, -1] @ random_gpt.table().T)
            ids = torch.cat([ids, scores.softmax(dim=-1).multinomial(1, generator=generator)], dim=1)
    texts = [tokenizer.decode(row) for row in ids.tolist()]
    finished = [row for row, text in enumerate(texts) if text.endswith("\n")]
    for row in finished:
        assert AsymmetricUnit.from_text(texts[row]).reduced_formula == "SiO2"
    assert sorted([*finished, *processor.dead_ends]) == list(range(12)) and finished and processor.dead_ends


def test_what_cannot_be_asked(tokenizer: CIFTokenizer):
    with pytest.raises(ValueError, match="mode must be syntax or full, got 'none'"):
        GrammarLogitsProcessor("NaCl", mode="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one prompt"):
        GrammarLogitsProcessor([])
    with pytest.raises(PromptError, match="Xx"):
        GrammarLogitsProcessor("Xx2")
    processor = GrammarLogitsProcessor(["NaCl", "KCl"])
    rows = [tokenizer.encode(text) for text in processor.texts]
    with pytest.raises(ValueError, match="3 rows for 2 prompts"):
        follow(processor, [*rows, rows[0]])
    with pytest.raises(ValueError, match=r"row 0 begins with 'data_KCl.*', wanted its prompt 'data_NaCl"):
        follow(processor, rows[::-1])
