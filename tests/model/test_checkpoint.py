"""Checkpoints that come back, released CrystaLLM weights, and files that are refused."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from crystallm.model.checkpoint import (
    export_checkpoint,
    import_crystallm,
    load_checkpoint,
    load_crystallm,
    load_weights,
    model_info,
    resolve_checkpoint,
)
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from tokenizer import CIFTokenizer
from tokenizer.vocabulary import cif_spec, vocabulary_from_spec


def write(folder: Path, model: GPT, tokenizer: CIFTokenizer, name: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: p.detach().clone() for k, p in model.named_parameters()}, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(model_info(model.config, tokenizer)))
    return folder


@torch.no_grad()
def test_a_checkpoint_comes_back(tmp_path: Path, any_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]):
    write(tmp_path / "run" / "best", any_gpt, tokenizer)
    model, loaded, info = load_checkpoint(tmp_path / "run")
    assert model.config == any_gpt.config and loaded.hash == tokenizer.hash and not model.training
    assert (info["weights"], info["path"], len(info["model_hash"])) == ("model", str(tmp_path / "run/best"), 64)
    torch.testing.assert_close(model.log_likelihood(sequences)[0], any_gpt.log_likelihood(sequences)[0])


@torch.no_grad()
def test_the_moving_average_is_the_model(tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer):
    write(tmp_path, tiny_gpt, tokenizer)
    tiny_gpt.embedding.plain.mul_(2)
    write(tmp_path, tiny_gpt, tokenizer, "ema")
    average, _, info = load_checkpoint(tmp_path)
    raw, _, _ = load_checkpoint(tmp_path, weights="model")
    assert info["weights"] == "ema"
    torch.testing.assert_close(average.embedding.plain, tiny_gpt.embedding.plain)
    torch.testing.assert_close(raw.embedding.plain * 2, tiny_gpt.embedding.plain)


@torch.no_grad()
def test_export_keeps_the_model_in_half_the_bytes(
    tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer, sequences: list[np.ndarray]
):
    source = write(tmp_path / "a", tiny_gpt, tokenizer)
    target = export_checkpoint(source, tmp_path / "b")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, target)]
    assert sizes[1] < 0.55 * sizes[0]
    expected, got = (load_checkpoint(f)[0].log_likelihood(sequences)[0] for f in (source, target))
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=0)
    tiny_gpt.embedding.plain[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"embedding\.plain does not fit torch\.float16"):
        export_checkpoint(write(tmp_path / "c", tiny_gpt, tokenizer), tmp_path / "d")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_export_costs_no_file_but_those_of_an_earlier_one(
    tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer, root: Path, monkeypatch, capsys
):
    source = write(tmp_path / "run/best", tiny_gpt, tokenizer)

    def script(out: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["export_model.py", str(source.parent), "--out", str(out)])
        runpy.run_path(str(root / "bin/export_model.py"), run_name="__main__")
        return capsys.readouterr().out

    exported = tmp_path / "exported"
    assert "kept" not in script(exported)
    first = contents(exported)
    extra = {"README.md": b"mine", "loss.png": b"x", "known.npz": b"y", "token_counts.npz": b"z", ".gitattributes": b""}
    for name, data in extra.items():
        (exported / name).write_bytes(data)
    with torch.no_grad():
        tiny_gpt.embedding.plain.mul_(2)
    write(source, tiny_gpt, tokenizer)
    said = script(exported)
    assert "kept from before: README.md, known.npz, loss.png, token_counts.npz\n" in said
    assert "earlier model's training data: known.npz, token_counts.npz; --records writes these anew" in said
    assert contents(exported) | first == extra | first
    assert (exported / "model.safetensors").read_bytes() != first["model.safetensors"]

    cifs, stock = tmp_path / "cifs", tmp_path / "stock"
    cifs.mkdir()
    (cifs / "mine.cif").write_text("data_x")
    stock.mkdir()
    for name, text in (("config.json", '{"model_type": "llama"}'), ("model.safetensors", "weights")):
        (stock / name).write_text(text)
    for folder, message in (
        (cifs, "cifs holds more than files of an exported model (mine.cif, ...)"),
        (stock, "stock holds more than files of an exported model (config.json, ...)"),
        (source, "best is an input"),
        (tmp_path, "holds the input"),
    ):
        before = contents(folder) if folder != tmp_path else {}
        with pytest.raises(SystemExit):
            script(folder)
        assert message in capsys.readouterr().err
        assert folder == tmp_path or contents(folder) == before


def test_a_vocabulary_of_ones_own_travels_with_the_model(tmp_path: Path):
    coarse = CIFTokenizer(vocabulary_from_spec(cif_spec("coarse", coordinate=("0.00", "0.99"))))
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16), token_spec(coarse))
    loaded, tokenizer, _ = load_checkpoint(write(tmp_path, model, coarse))
    assert tokenizer.name == "coarse" and tokenizer.hash == coarse.hash and loaded.spec.vocab_size == coarse.vocab_size


def test_what_does_not_fit_is_refused(tmp_path: Path, tiny_gpt: GPT, tokenizer: CIFTokenizer):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        resolve_checkpoint(tmp_path)
    folder = write(tmp_path / "a", tiny_gpt, tokenizer)
    with pytest.raises(FileNotFoundError, match=r"no ema\.safetensors"):
        load_checkpoint(folder, weights="ema")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocabulary_hash": "0" * 64}))
    with pytest.raises(ValueError, match="of hash 000000000000, this version's is"):
        load_checkpoint(folder)
    weights = {k: p.detach() for k, p in tiny_gpt.named_parameters()}
    with pytest.raises(ValueError, match=r"w: extra is unknown \(1 such\)"):
        load_weights(tiny_gpt, {**weights, "extra": torch.zeros(1)}, "w")
    with pytest.raises(ValueError, match=r"w: ln_f.weight is \(3,\), wanted \(32,\)"):
        load_weights(tiny_gpt, {**weights, "ln_f.weight": torch.zeros(3)}, "w")


def gpt2_logits(weights: dict[str, Tensor], ids: Tensor, n_layer: int, n_head: int) -> Tensor:
    """GPT-2 written out from its paper and the names of a nanoGPT checkpoint: (T,) -> (T, vocab_size)"""
    w = {name.removeprefix("_orig_mod.transformer."): value for name, value in weights.items()}
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)  # noqa: E731
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    T, C = x.shape
    for i in range(n_layer):
        y = norm(x, f"h.{i}.ln_1") @ w[f"h.{i}.attn.c_attn.weight"].T + w.get(f"h.{i}.attn.c_attn.bias", 0)
        heads = []
        for h in range(n_head):
            d = C // n_head
            q, k, v = (y[:, part * C + h * d : part * C + (h + 1) * d] for part in range(3))
            scores = (q @ k.T / d**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ w[f"h.{i}.attn.c_proj.weight"].T + w.get(f"h.{i}.attn.c_proj.bias", 0)
        y = norm(x, f"h.{i}.ln_2") @ w[f"h.{i}.mlp.c_fc.weight"].T + w.get(f"h.{i}.mlp.c_fc.bias", 0)
        y = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
        x = x + y @ w[f"h.{i}.mlp.c_proj.weight"].T + w.get(f"h.{i}.mlp.c_proj.bias", 0)
    return norm(x, "ln_f") @ w["wte.weight"].T


def crystallm_file(
    path: Path, bias: bool, std: float, n_layer: int = 2, n_head: int = 2, C: int = 16
) -> dict[str, Any]:
    """A random checkpoint in the published format; returns what the file holds."""
    generator = torch.Generator().manual_seed(0)
    block_size, vocab_size = 24, 371
    shapes: dict[str, tuple[int, ...]] = {"wte": (vocab_size, C), "wpe": (block_size, C), "ln_f": (C,)}
    for i in range(n_layer):
        matrices = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
        shapes |= {f"h.{i}.{name}": shape for name, shape in ({"ln_1": (C,), "ln_2": (C,)} | matrices).items()}
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    if bias:
        named |= {f"{name}.bias": shape[:1] for name, shape in shapes.items() if name not in ("wte", "wpe")}
    weights = {f"_orig_mod.transformer.{n}": torch.randn(s, generator=generator) * std for n, s in named.items()}
    for name in weights:
        if ".ln_" in name and name.endswith("weight"):
            weights[name] += 1
    weights["_orig_mod.lm_head.weight"] = weights["_orig_mod.transformer.wte.weight"]
    arguments = {"n_layer": n_layer, "n_head": n_head, "n_embd": C, "block_size": block_size, "bias": bias}
    arguments |= {"vocab_size": vocab_size, "dropout": 0.1}
    saved = {"model": weights, "model_args": arguments, "iter_num": 7, "best_val_loss": torch.tensor(0.5)}
    torch.save(saved, path)
    return saved


@pytest.mark.parametrize(("bias", "std"), [(False, 0.02), (True, 0.02), (True, 0.2)])
def test_released_crystallm_weights_run_in_the_same_class(tmp_path: Path, bias: bool, std: float):
    """The published sizes are 0.02; ten times that makes every part of the sum count."""
    n_layer, n_head, width = 4, 4, 32
    weights = crystallm_file(tmp_path / "ckpt.pt", bias, std, n_layer, n_head, width)["model"]
    model, tokenizer, info = load_crystallm(tmp_path / "ckpt.pt")
    ids = torch.randint(0, 371, (24,), generator=torch.Generator().manual_seed(1))
    expected = gpt2_logits(weights, ids, n_layer, n_head)
    with torch.no_grad():
        torch.testing.assert_close((model(ids[None]) @ model.table().T)[0], expected, atol=1e-5, rtol=1e-5)
        total, _ = model.log_likelihood([ids.numpy()])
    nats = F.cross_entropy(expected[:-1], ids[1:], reduction="sum")
    assert float(total) == pytest.approx(-float(nats), rel=1e-5)
    assert tokenizer.name == info["vocabulary"] == "crystallm_v1"


def test_an_import_is_the_same_model(tmp_path: Path):
    """In float32, to the last bit, and it loads as any checkpoint does; so does the file itself."""
    crystallm_file(tmp_path / "ckpt.pt", True, 0.2)
    folder = import_crystallm(tmp_path / "ckpt.pt", tmp_path / "imported")
    ids = torch.arange(24)[None]
    logits = []
    for path in (tmp_path / "ckpt.pt", folder):
        model, tokenizer, info = load_checkpoint(path)
        assert tokenizer.name == "crystallm_v1" and info["crystallm"] == {"iter_num": 7.0, "best_val_loss": 0.5}
        with torch.no_grad():
            logits.append(model(ids) @ model.table().T)
    assert torch.equal(*logits)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    import_crystallm(tmp_path / "ckpt.pt", folder)  # once more replaces it
    with pytest.raises(ValueError, match="has no moving average"):
        load_checkpoint(tmp_path / "ckpt.pt", weights="ema")
    with pytest.raises(ValueError, match="holds the input"):
        import_crystallm(tmp_path / "ckpt.pt", tmp_path)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"imported holds more than files of an exported model \(notes\.txt"):
        import_crystallm(tmp_path / "ckpt.pt", folder)


def test_files_that_are_no_crystallm_checkpoint(tmp_path: Path):
    path = tmp_path / "ckpt.pt"
    saved = crystallm_file(path, False, 0.02)
    for change, message in (
        (
            {"model_args": {**saved["model_args"], "vocab_size": 400}},
            "vocab_size is 400, the published vocabulary has 371",
        ),
        ({"model_args": {"n_layer": 2}}, "its model_args lack bias, block_size, n_embd, n_head, vocab_size"),
        ({"model": {**saved["model"], "transformer.extra": torch.zeros(1)}}, r"extra is unknown \(1 such\)"),
    ):
        torch.save({**saved, **change}, path)
        with pytest.raises(ValueError, match=message):
            load_crystallm(path)
    torch.save(saved["model"], path)
    with pytest.raises(ValueError, match=r"no CrystaLLM checkpoint: it holds _orig_mod\.transformer\.wte\.weight"):
        load_crystallm(path)
    path.write_text("data_NaCl\n")
    with pytest.raises(ValueError, match="no CrystaLLM checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        import_crystallm(tmp_path / "none.pt", tmp_path / "out")
