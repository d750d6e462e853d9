"""A checkpoint as a stock Hugging Face model: `transformers`, vLLM and the like load it without any code of ours.

The folder holds the weights under the names of a class that `transformers` has (with the token table computed, so that
nothing of the number networks is left), the tokenizer as tokenizer.json, the grammar over token ids for servers that
take one, and the checkpoint itself in crystallm/, which is what our own commands load. Nothing here needs
`transformers`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from crystallm.hub import MODEL_FILES, is_model_config
from crystallm.model.checkpoint import Weights, load_checkpoint
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.hf_card import model_card
from crystallm.model.hf_tokenizer import grammar_lark, tokenizer_config, tokenizer_json
from crystallm.output import check_output_folder

NORM_EPS = 1e-5  # of our RMSNorm and LayerNorm
SHAPES = {"llama": ("rmsnorm", "rotary", "swiglu"), "gpt2": ("layernorm", "learned", "gelu")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_hf(source: str | Path, target: str | Path, dtype: str = "float32", weights: Weights = "auto") -> Path:
    """Write the checkpoint `source` as the Hugging Face folder `target`, in place of an earlier export.

    FileExistsError where that holds anything else, but for LICENSE, loss.png and names that begin with a dot. Raises
    ValueError for a model without a stock class, a vocabulary without a stock tokenizer, or weights that do not fit
    `dtype` (float32, bfloat16, float16).
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    model, tokenizer, info = load_checkpoint(source, weights=weights)
    tokens = tokenizer_json(tokenizer)
    config, tensors = hf_model(model)
    tensors = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{source}: {name} does not fit {dtype}")
    special = {"bos_token_id": None, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
    config |= {"vocab_size": tokenizer.vocab_size, "tie_word_embeddings": True, "dtype": dtype, **special}

    # Draws from the distribution itself; the library's own default is greedy and stops after 20 tokens. Padding ends a
    # row, too: it is what the logits processor writes where nothing can follow.
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_length": model.config.block_size}
    ends = [tokenizer.end_id, tokenizer.pad_id]
    texts = {
        "config.json": _as_json(config),
        "generation_config.json": _as_json({**drawing, **special, "eos_token_id": ends}),
        "tokenizer.json": json.dumps(tokens, ensure_ascii=False),
        "tokenizer_config.json": _as_json(tokenizer_config(tokenizer, model.config.block_size)),
        "grammar.lark": grammar_lark(tokenizer),
        "README.md": model_card(model, tokenizer, config),
    }
    folder = Path(target)
    _check_folder(folder, {*texts, "model.safetensors"}, Path(info["path"]))
    shutil.rmtree(folder / "crystallm", ignore_errors=True)
    (folder / "crystallm").mkdir(parents=True)
    _copy_checkpoint(Path(info["path"]), folder / "crystallm", info["weights"])
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _check_folder(folder: Path, names: Collection[str], source: Path) -> None:
    def is_ours(file: Path) -> bool:
        first, *inside = file.relative_to(folder).parts
        if first.startswith(".") or first in ("LICENSE", "loss.png"):
            return True
        if not is_model_config(folder / "crystallm/config.json"):
            return False
        if first == "crystallm":
            return not inside or inside[0] in (*MODEL_FILES, "known.npz")
        return first in names and file.is_file()

    check_output_folder(folder, is_ours, "files of an exported model", [source], overwrite=True)


def hf_model(model: GPT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, weights) of the stock class that computes the same logits.

    LlamaForCausalLM; Qwen3ForCausalLM, which has its query/key norm; or GPT2LMHeadModel. Raises ValueError where there
    is none.
    """
    config = model.config
    shape = (config.norm, config.position, config.mlp)
    parts = {name: p.detach().float() for name, p in model.named_parameters() if not name.startswith("embedding.")}
    with torch.no_grad():
        table = model.embedding().float()  # (vocab_size, n_embd)
    if shape == SHAPES["llama"]:
        fields, tensors = _llama(config, parts, table)
    elif shape == SHAPES["gpt2"] and not config.qk_norm:
        fields, tensors = _gpt2(config, parts, table)
    else:
        known = " or ".join(" + ".join(names) for names in SHAPES.values())
        norm = " + qk_norm" if config.qk_norm else ""
        raise ValueError(f"no stock class has blocks of {' + '.join(shape)}{norm}; there are {known}")
    if parts:
        raise ValueError(f"{next(iter(parts))} has no place in {fields['architectures'][0]} ({len(parts)} such)")
    return fields, tensors


def _llama(config: GPTConfig, parts: dict[str, Tensor], table: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if config.qk_norm and config.bias:
        raise ValueError("no stock class has both qk_norm and biases in its MLP; there is Qwen3 without biases")
    name, family = ("Qwen3ForCausalLM", "qwen3") if config.qk_norm else ("LlamaForCausalLM", "llama")
    width = config.n_embd // config.n_head
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    fields = {
        "architectures": [name],
        "model_type": family,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_mlp,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": width,
        "hidden_act": "silu",
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": rope["rope_theta"],  # where transformers before version 5 looks
        "rope_parameters": rope,
        "attention_bias": config.bias,
        "attention_dropout": 0.0,
    }
    if not config.qk_norm:
        fields["mlp_bias"] = config.bias
    tensors = {"model.embed_tokens.weight": table, "model.norm.weight": parts.pop("ln_f.weight")}
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        tensors[f"{theirs}input_layernorm.weight"] = parts.pop(f"{ours}ln_1.weight")
        tensors[f"{theirs}post_attention_layernorm.weight"] = parts.pop(f"{ours}ln_2.weight")
        for kind in ("weight", "bias") if config.bias else ("weight",):
            q, k, v = parts.pop(f"{ours}attn.c_attn.{kind}").chunk(3)
            if config.qk_norm:
                # Our norm of queries and keys has no weights, and the smallest number of float32 as epsilon. Theirs
                # has the epsilon of all norms: queries and keys that are larger by this factor make up for it.
                q, k = ((NORM_EPS / torch.finfo(torch.float32).eps) ** 0.5 * x for x in (q, k))
            gate, up = parts.pop(f"{ours}mlp.c_fc.{kind}").chunk(2)
            attention = {"q": q, "k": k, "v": v, "o": parts.pop(f"{ours}attn.c_proj.{kind}")}
            mlp = {"gate": gate, "up": up, "down": parts.pop(f"{ours}mlp.c_proj.{kind}")}
            tensors |= {f"{theirs}self_attn.{part}_proj.{kind}": tensor for part, tensor in attention.items()}
            tensors |= {f"{theirs}mlp.{part}_proj.{kind}": tensor for part, tensor in mlp.items()}
        if config.qk_norm:
            tensors |= {f"{theirs}self_attn.{part}_norm.weight": torch.ones(width) for part in "qk"}
    return fields, tensors


def _gpt2(config: GPTConfig, parts: dict[str, Tensor], table: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    fields = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.n_embd,
        "n_inner": config.n_mlp,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_positions": config.block_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": NORM_EPS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    tensors = {"transformer.wte.weight": table, "transformer.wpe.weight": parts.pop("wpe.weight")}

    def move(ours: str, theirs: str, change: Callable[[Tensor], Tensor]) -> None:
        weight = parts.pop(f"{ours}.weight")
        no_bias = torch.zeros(weight.shape[0])  # theirs always has one
        tensors[f"transformer.{theirs}.weight"] = change(weight)
        tensors[f"transformer.{theirs}.bias"] = parts.pop(f"{ours}.bias", no_bias)

    move("ln_f", "ln_f", torch.clone)
    for layer in range(config.n_layer):
        for name in ("ln_1", "ln_2"):
            move(f"blocks.{layer}.{name}", f"h.{layer}.{name}", torch.clone)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            move(f"blocks.{layer}.{name}", f"h.{layer}.{name}", torch.t)  # their Conv1D is (in, out)
    return fields, tensors


def _copy_checkpoint(source: Path, target: Path, weights: str) -> None:
    """The weights that were exported, as they are, and what belongs to them."""
    shutil.copyfile(source / f"{weights}.safetensors", target / "model.safetensors")
    for name in ("config.json", "known.npz"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
