"""Reading models back from checkpoint folders, and writing small ones to release.

A folder holds config.json (model config, vocabulary name and hash, how it was trained), model.safetensors and perhaps
ema.safetensors, the moving average, which is then the model that was evaluated.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystallm.config import from_dict, to_dict
from crystallm.hub import check_export, resolve_checkpoint
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec

if TYPE_CHECKING:
    from tokenizer import CIFTokenizer

Weights = Literal["auto", "ema", "model"]


def model_info(config: GPTConfig, tokenizer: CIFTokenizer) -> dict[str, Any]:
    """What a checkpoint's config.json must hold for load_checkpoint to build the model again."""
    from tokenizer.vocabulary import BUILT_IN

    own = tokenizer.name not in BUILT_IN  # a vocabulary of the user's own travels with the model
    return {
        "model": to_dict(config),
        "vocabulary": tokenizer.name,
        "vocabulary_hash": tokenizer.hash,
        "vocabulary_spec": tokenizer.vocabulary.spec if own else None,
    }


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", weights: Weights = "auto"
) -> tuple[GPT, CIFTokenizer, dict[str, Any]]:
    """(model in evaluation mode, its tokenizer, info) from a checkpoint folder, or from a run's folder: its best.

    A file is taken for a released CrystaLLM model (`load_crystallm`). `weights`: auto takes the moving average where
    there is one. `info` is config.json with "path", "weights" and "model_hash" (sha256 of the weights file) added.
    """
    folder = resolve_checkpoint(path)
    if folder.is_file():
        if weights == "ema":
            raise ValueError(f"{folder}: a CrystaLLM checkpoint has no moving average")
        return load_crystallm(folder, device)
    info = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "vocabulary_hash" not in info:
        raise ValueError(f"{folder}: config.json is not a crystallm model's (model_type {info.get('model_type')!r})")
    tokenizer = _tokenizer(info, folder)
    config = from_dict(GPTConfig, info["model"], where=f"{folder}/config.json: ")
    name = ("ema" if (folder / "ema.safetensors").is_file() else "model") if weights == "auto" else weights
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no {file.name} here")
    model = GPT(config, token_spec(tokenizer, config.loss))
    load_weights(model, load_file(file), where=str(file))
    info |= {"path": str(folder), "weights": name, "model_hash": hashlib.sha256(file.read_bytes()).hexdigest()}
    return model.to(device).eval(), tokenizer, info


@torch.no_grad()
def load_weights(model: GPT, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors of any floating type into the model's parameters, all of them and no others."""
    parameters = dict(model.named_parameters())
    odd = sorted(set(parameters) ^ set(tensors))
    if odd:
        raise ValueError(f"{where}: {odd[0]} is {'missing' if odd[0] in parameters else 'unknown'} ({len(odd)} such)")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{where}: {name} is {tuple(tensors[name].shape)}, wanted {tuple(parameter.shape)}")
        parameter.copy_(tensors[name])
    model.train(model.training)  # forgets the token table made from the old weights


def export_checkpoint(
    source: str | Path, target: str | Path, dtype: torch.dtype = torch.float16, weights: Weights = "auto"
) -> Path:
    """Write the weights alone, in half the bytes, with their config.json: what is released or bundled.

    They replace those of an earlier export; see `check_export` for other folders. float16 keeps 11 bits of each weight,
    bfloat16 8; the weights lie far inside float16's range (checked).
    """
    check_export(source, target)
    model, _, info = load_checkpoint(source, weights=weights)
    tensors = {name: p.detach().to(dtype).contiguous() for name, p in model.named_parameters()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{source}: {name} does not fit {dtype}")
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    kept = {k: v for k, v in info.items() if k not in ("path", "weights", "model_hash")}
    (folder / "config.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return folder


def load_crystallm(path: str | Path, device: torch.device | str = "cpu") -> tuple[GPT, CIFTokenizer, dict[str, Any]]:
    """A released CrystaLLM model (its ckpt.pt), as load_checkpoint gives ours. ValueError for any other file."""
    from tokenizer import CIFTokenizer

    saved = _read_crystallm(Path(path))
    arguments = saved["model_args"]
    tokenizer = CIFTokenizer("crystallm_v1")
    if arguments["vocab_size"] not in (None, tokenizer.vocab_size):
        got = arguments["vocab_size"]
        raise ValueError(f"{path}: vocab_size is {got}, the published vocabulary has {tokenizer.vocab_size} tokens")
    config = GPTConfig(
        n_layer=arguments["n_layer"],
        n_head=arguments["n_head"],
        n_embd=arguments["n_embd"],
        block_size=arguments["block_size"],
        bias=bool(arguments["bias"]),
        dropout=float(arguments.get("dropout", 0.0)),
        norm="layernorm",
        position="learned",
        mlp="gelu",
        number_embedding=False,
        loss="full",
    )
    model = GPT(config, token_spec(tokenizer, "full"))
    load_weights(model, {_our_name(k): v for k, v in saved["model"].items() if _is_weight(k)}, str(path))
    info = {**model_info(config, tokenizer), "path": str(path), "weights": "model", "model_hash": _sha256(Path(path))}
    info["crystallm"] = {name: float(saved[name]) for name in ("iter_num", "best_val_loss") if name in saved}
    return model.to(device).eval(), tokenizer, info


def import_crystallm(source: str | Path, target: str | Path) -> Path:
    """Write a released CrystaLLM model (its ckpt.pt) as a checkpoint folder, in float32: its numbers do not change.

    An earlier import is replaced; FileExistsError where `target` holds anything but a model.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file; wanted CrystaLLM's ckpt.pt")
    return export_checkpoint(source, target, dtype=torch.float32)


def _read_crystallm(path: Path) -> dict[str, Any]:
    try:
        # Two thirds of such a file are the optimizer's: mapped into memory, they are never read.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as err:
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ValueError(f"{path}: no CrystaLLM checkpoint: {reason}") from None
    got = ", ".join(map(str, list(saved)[:5])) if isinstance(saved, dict) else type(saved).__name__
    if not isinstance(saved, dict) or not {"model", "model_args"} <= saved.keys():
        raise ValueError(f"{path}: no CrystaLLM checkpoint: it holds {got}; wanted model and model_args")
    lacking = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size"} - saved["model_args"].keys()
    if lacking:
        raise ValueError(f"{path}: no CrystaLLM checkpoint: its model_args lack {', '.join(sorted(lacking))}")
    return saved


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_weight(name: str) -> bool:
    """lm_head is wte once more; code for older PyTorch saved a causal mask with every layer, attn.bias."""
    return "lm_head" not in name and not name.endswith(".attn.bias")


def _our_name(name: str) -> str:
    """transformer.h.0.attn.c_attn.weight -> blocks.0.attn.c_attn.weight; compiled models carry a prefix."""
    name = name.removeprefix("_orig_mod.").removeprefix("transformer.")
    for theirs, ours in (("wte.weight", "embedding.plain"), ("h.", "blocks.")):
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    return name


def _tokenizer(info: Mapping[str, Any], folder: Path) -> CIFTokenizer:
    from tokenizer import CIFTokenizer
    from tokenizer.vocabulary import vocabulary_from_spec

    spec = info.get("vocabulary_spec")
    tokenizer = CIFTokenizer(vocabulary_from_spec(spec, where=str(folder)) if spec else info["vocabulary"])
    if tokenizer.hash != info["vocabulary_hash"]:
        raise ValueError(
            f"{folder}: trained with vocabulary {info['vocabulary']!r} of hash {info['vocabulary_hash'][:12]}, "
            f"this version's is {tokenizer.hash[:12]}: its token ids mean something else"
        )
    return tokenizer
