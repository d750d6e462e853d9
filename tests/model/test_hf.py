"""Exported models beside `transformers`, `tokenizers` and llguidance, which know nothing of ours."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import crystallm
from crystallm.model.checkpoint import load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.hf import export_hf, hf_model
from crystallm.model.hf_tokenizer import grammar_lark, tokenizer_json
from tokenizer import CIFTokenizer, Grammar, GrammarError
from tokenizer.vocabulary import cif_spec, vocabulary_from_spec

transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf`)")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (the extra `hf`)")

SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=96, number_hidden=16)
GPT2 = replace(SMALL, norm="layernorm", position="learned", mlp="gelu")
SHAPES = {
    "llama": (SMALL, "LlamaForCausalLM"),
    "llama with biases": (replace(SMALL, bias=True), "LlamaForCausalLM"),
    "qk_norm": (replace(SMALL, qk_norm=True), "Qwen3ForCausalLM"),
    "gpt2": (replace(GPT2, bias=True, number_embedding=False, loss="full"), "GPT2LMHeadModel"),
    "gpt2 without biases": (GPT2, "GPT2LMHeadModel"),
}


def write(folder: Path, model: GPT, tokenizer: CIFTokenizer, name: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: p.detach().clone() for k, p in model.named_parameters()}, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(model_info(model.config, tokenizer)))
    return folder


def tokenizer_of(vocabulary: CIFTokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(vocabulary)))


@pytest.fixture(scope="module")
def hf_tokenizer(tokenizer: CIFTokenizer) -> tokenizers.Tokenizer:
    return tokenizer_of(tokenizer)


@pytest.fixture
def exported(tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer) -> Path:
    return export_hf(write(tmp_path / "run/best", tiny_gpt, tokenizer).parent, tmp_path / "shared")


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_transformers_gives_the_same_logits(
    tmp_path: Path, gpt_of: Callable[[GPTConfig], GPT], tokenizer: CIFTokenizer, sequences: list[np.ndarray], shape: str
):
    config, architecture = SHAPES[shape]
    ours = gpt_of(config)
    folder = export_hf(write(tmp_path / "ours", ours, tokenizer), tmp_path / "theirs")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == architecture and theirs.dtype == torch.float32
    # GPT-2's head is tied, so its lm_head is not in the file.
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    for ids in sequences:
        wanted = ours(torch.from_numpy(ids)[None]) @ ours.table().T  # (1, T, vocab_size)
        got = theirs(torch.from_numpy(ids)[None]).logits
        assert wanted.std() > 0.1  # weights large enough for differences to show
        torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.std()), rtol=1e-4)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(
    exported: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]
):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    loaded = transformers.AutoTokenizer.from_pretrained(exported)
    batch = loaded([tokenizer.decode(ids) for ids in sequences], return_tensors="pt", padding=True)
    logits = theirs(**batch).logits
    for row, ids in enumerate(sequences):
        wanted = tiny_gpt(torch.from_numpy(ids)[None])[0] @ tiny_gpt.table().T
        torch.testing.assert_close(logits[row, -len(ids) :], wanted, atol=1e-4 * float(wanted.std()), rtol=1e-4)


@pytest.mark.parametrize(("dtype", "steps"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_sixteen_bits(tmp_path: Path, exported: Path, dtype: str, steps: float):
    half = export_hf(exported, tmp_path / "half", dtype)
    whole, rounded = (load_file(folder / "model.safetensors") for folder in (exported, half))
    assert json.loads((half / "config.json").read_text())["dtype"] == dtype
    assert transformers.AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == getattr(torch, dtype)
    for name, tensor in whole.items():
        torch.testing.assert_close(rounded[name].float(), tensor, rtol=steps, atol=1e-7)


def test_transformers_draws_as_it_was_trained(exported: Path, tokenizer: CIFTokenizer):
    """Not greedily, not among the 50 likeliest, not 20 tokens; a structure ends with its newline, or with padding."""
    drawing = transformers.AutoModelForCausalLM.from_pretrained(exported).generation_config
    assert (drawing.do_sample, drawing.top_k, drawing.top_p, drawing.temperature) == (True, 0, 1.0, 1.0)
    assert drawing.max_length == 96 and drawing.pad_token_id == tokenizer.pad_id
    assert drawing.eos_token_id == [tokenizer.end_id, tokenizer.pad_id]


@torch.no_grad()
def test_our_commands_load_the_folder(
    tmp_path: Path, exported: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]
):
    model, loaded, info = load_checkpoint(exported)
    original = load_checkpoint(tmp_path / "run")[2]
    assert loaded.hash == tokenizer.hash and info["model_hash"] == original["model_hash"]
    torch.testing.assert_close(model.log_likelihood(sequences)[0], tiny_gpt.log_likelihood(sequences)[0])
    again = export_hf(exported, tmp_path / "again")  # and so does the export
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


@torch.no_grad()
def test_the_moving_average_is_what_is_exported(tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer):
    folder = write(tmp_path / "run", tiny_gpt, tokenizer)
    (folder / "known.npz").write_bytes(b"index")
    tiny_gpt.ln_f.weight.mul_(2)
    write(folder, tiny_gpt, tokenizer, "ema")
    target = export_hf(folder, tmp_path / "out")
    torch.testing.assert_close(load_file(target / "model.safetensors")["model.norm.weight"], tiny_gpt.ln_f.weight)
    torch.testing.assert_close(load_checkpoint(target)[0].ln_f.weight, tiny_gpt.ln_f.weight)
    assert (target / "crystallm/known.npz").read_bytes() == b"index"
    raw = export_hf(folder, tmp_path / "raw", weights="model")
    torch.testing.assert_close(
        load_file(raw / "model.safetensors")["model.norm.weight"] * 2, tiny_gpt.ln_f.weight.detach()
    )


def test_what_has_no_stock_class_is_refused(
    tmp_path: Path, gpt_of: Callable[[GPTConfig], GPT], tiny_gpt: GPT, tokenizer: CIFTokenizer
):
    with pytest.raises(ValueError, match=r"blocks of rmsnorm \+ learned \+ swiglu; there are rmsnorm \+ rotary"):
        hf_model(gpt_of(replace(SMALL, position="learned")))
    with pytest.raises(ValueError, match="both qk_norm and biases"):
        hf_model(gpt_of(replace(SMALL, qk_norm=True, bias=True)))
    with pytest.raises(ValueError, match=r"layernorm \+ learned \+ gelu \+ qk_norm"):
        hf_model(gpt_of(replace(GPT2, qk_norm=True)))
    tiny_gpt.blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"blocks\.0\.extra\.weight has no place in LlamaForCausalLM \(2 such\)"):
        hf_model(tiny_gpt)


@torch.no_grad()
def test_bad_targets(tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer):
    source = write(tmp_path / "run", tiny_gpt, tokenizer)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        export_hf(source, tmp_path / "out", "int8")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis holds more than files of an exported model"):
        export_hf(source, tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "years of work"
    tiny_gpt.ln_f.weight[0] = 1e6
    write(tmp_path / "run", tiny_gpt, tokenizer)
    with pytest.raises(ValueError, match=r"model\.norm\.weight does not fit float16"):
        export_hf(source, tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()


def test_a_stock_model_is_not_one_of_ours(tmp_path: Path, exported: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    with pytest.raises(ValueError, match=r"not a crystallm model's \(model_type 'llama'\)"):
        load_checkpoint(tmp_path)


def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path: Path, exported: Path):
    source = tmp_path / "run"
    (exported / ".gitattributes").write_text("mine")
    (exported / "crystallm/known.npz").write_text("of a source that has it no more")
    export_hf(source, exported, "bfloat16")
    assert (exported / ".gitattributes").read_text() == "mine" and not (exported / "crystallm/known.npz").exists()
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"
    for name in ("notes.txt", "crystallm/notes.txt"):
        (exported / name).write_text("mine")
        with pytest.raises(FileExistsError, match=rf"shared holds more than files of an exported model \({name}"):
            export_hf(source, exported)
        assert (exported / name).read_text() == "mine"
        (exported / name).unlink()


def test_the_command(
    tmp_path: Path,
    exported: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["export_hf.py", *arguments])
        runpy.run_path(str(root / "bin/export_hf.py"), run_name="__main__")

    run(str(exported), "--out", str(tmp_path / "out"), "--dtype", "bfloat16")
    assert "bytes written to" in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "LlamaForCausalLM" in card and "{" not in card
    with pytest.raises(SystemExit):
        run(str(tmp_path / "nothing"), "--out", str(tmp_path / "out"))
    assert "no checkpoint here" in capsys.readouterr().err


# ---------------------------------------------------------------- the tokenizer


def demo_cifs(root: Path) -> list[str]:
    return pq.read_table(root / "resources/demo/demo.parquet", columns=["cif"])["cif"].to_pylist()


def same(theirs: tokenizers.Tokenizer, ours: CIFTokenizer, texts: list[str]) -> bool:
    """Whether the ids are the same for every text, and give it back."""
    encoded = [encoding.ids for encoding in theirs.encode_batch(texts)]
    return encoded == [ours.encode(text) for text in texts] and theirs.decode_batch(encoded) == texts


def test_same_ids_as_ours(root: Path, hf_tokenizer: tokenizers.Tokenizer, tokenizer: CIFTokenizer):
    """Canonical texts and full CIFs of every twentieth crystal of the demo corpus."""
    cifs = demo_cifs(root)[::20]
    canonical = [crystallm.canonicalize(cif) for cif in cifs]
    assert all(len(tokenizer.encode(text)) < len(text) / 5 for text in canonical)  # lexemes, not bytes
    assert same(hf_tokenizer, tokenizer, canonical)
    assert same(hf_tokenizer, tokenizer, cifs)


@pytest.mark.slow
def test_same_ids_as_ours_for_the_whole_demo_corpus(
    root: Path, hf_tokenizer: tokenizers.Tokenizer, tokenizer: CIFTokenizer
):
    assert same(hf_tokenizer, tokenizer, [crystallm.canonicalize(cif) for cif in demo_cifs(root)])


PIECES = st.sampled_from(["data_", "\n_cell_length_a ", "10.5", "90.0", " 0.500", " Pm", "-3m", "Fe", "\n", "1", "11"])
CHARACTERS = st.characters(exclude_categories=["Cs"])


@given(st.lists(PIECES | st.text(CHARACTERS, max_size=8), max_size=12).map("".join))
def test_same_ids_for_any_text(hf_tokenizer: tokenizers.Tokenizer, tokenizer: CIFTokenizer, text: str):
    assert same(hf_tokenizer, tokenizer, [text])


def test_the_tokenizer_as_transformers_loads_it(exported: Path, tokenizer: CIFTokenizer, sequences: list[np.ndarray]):
    loaded = transformers.AutoTokenizer.from_pretrained(exported)
    texts = [tokenizer.decode(ids) for ids in sequences]
    assert loaded(texts)["input_ids"] == [ids.tolist() for ids in sequences]
    padded = loaded(texts, return_tensors="pt", padding=True)["input_ids"]
    assert loaded.batch_decode(padded, skip_special_tokens=True) == texts
    assert len(loaded) == tokenizer.vocab_size and loaded.pad_token_id == tokenizer.pad_id
    assert loaded.decode(loaded("data_ñ中\n , . 's")["input_ids"]) == "data_ñ中\n , . 's"  # nothing is cleaned up


def test_another_grid(tmp_path: Path, sequences: list[np.ndarray]):
    spec = cif_spec("fine", coordinate=("0.0000", "0.9999"))
    fine = CIFTokenizer(vocabulary_from_spec(spec))
    assert same(tokenizer_of(fine), fine, ["\nNa a 0.0000 0.2500 0.1234", " 0.123 4.05 90.0"])


def test_a_vocabulary_without_lexemes_is_refused():
    with pytest.raises(ValueError, match="'crystallm_v1' has no stock tokenizer"):
        tokenizer_json(CIFTokenizer("crystallm_v1"))


# ---------------------------------------------------------------- the grammar


FORMULA = "data_NaCl\n_crystallm_primitive_formula_units "


@pytest.mark.parametrize("prompt", [FORMULA, "# band_gap_ev +1.10\ndata_"])
def test_llguidance_allows_what_the_grammar_allows(
    exported: Path, tokenizer: CIFTokenizer, sequences: list[np.ndarray], prompt: str
):
    llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")
    from llguidance.hf import from_tokenizer

    theirs = from_tokenizer(transformers.AutoTokenizer.from_pretrained(exported), tokenizer.vocab_size)
    compiled = llguidance.grammar_from("grammar", grammar_lark(tokenizer, prompt))
    grammar, begin = Grammar(tokenizer), tokenizer.encode(prompt)
    for ids in sequences:
        whole = [*begin, *ids[ids.tolist().index(begin[-1]) + 1 :].tolist()]
        states = grammar.states(whole)
        matcher = llguidance.LLMatcher(theirs, compiled)
        assert not matcher.get_error()
        for position in range(len(begin), len(whole)):
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: tokenizer.vocab_size])
            assert allowed.tolist() == sorted(grammar.allowed(states[position]).tolist())
            assert matcher.consume_token(whole[position])
        assert matcher.is_accepting() and matcher.is_stopped()


def test_the_grammar_beside_the_model_is_for_any_formula(exported: Path, tokenizer: CIFTokenizer):
    assert (exported / "grammar.lark").read_text() == grammar_lark(tokenizer, FORMULA)


def test_a_prompt_that_is_no_beginning(tokenizer: CIFTokenizer):
    with pytest.raises(GrammarError, match="expected formula_element"):
        grammar_lark(tokenizer, "data_?")
