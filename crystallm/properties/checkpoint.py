"""Building predictors from their configs, and reading them back from checkpoint folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystallm.config import from_dict, to_dict
from crystallm.hub import resolve_checkpoint
from crystallm.model.checkpoint import load_checkpoint
from crystallm.properties.encoding import Encoder
from crystallm.properties.frozen import MATSCIBERT, DecoderEncoder, HFEncoder, Keep
from crystallm.properties.graph import GraphEncoder
from crystallm.properties.predictor import HeadConfig, PropertyPredictor, Target
from crystallm.properties.samples import Texts
from crystallm.properties.structure import StructureConfig, StructureEncoder
from crystallm.properties.text import WordEncoder, vocabulary_hash
from crystallm.resources import resource_path


@dataclass(frozen=True)
class TextConfig:
    encoder: Literal["words", "hf", "decoder"] = "words"  # trained here; any of Hugging Face; our own CIF decoder
    name: str | None = None  # of hf: m3rg-iitd/matscibert, or another, or a folder; of decoder: a checkpoint
    width: int = 128  # of `words`, or what the frozen encoder's vectors are projected to
    n_layer: int = 2  # of `words`
    n_head: int = 4
    max_tokens: int = 512  # texts with more are refused (words) or cut (frozen encoders, BERT's limit is 512)
    cache: str = "data/encodings.sqlite3"  # what a frozen encoder said of each text
    keep: Keep = "tokens"  # of it: every token's vector, their means by sentence, or one mean

    @property
    def reads(self) -> Literal["description", "canonical"]:
        return "canonical" if self.encoder == "decoder" else "description"


def make_structure_encoder(config: StructureConfig) -> Encoder:
    """ImportError where its library is not installed"""
    return StructureEncoder(config) if config.encoder == "transformer" else GraphEncoder(config)


def make_text_encoder(config: TextConfig) -> Encoder:
    """Raises ImportError, FileNotFoundError or ValueError, which say what to do, where an encoder cannot be had."""
    if config.encoder == "words":
        return WordEncoder(config.width, config.n_layer, config.n_head, max_tokens=config.max_tokens)
    frozen = {"width_out": config.width, "max_tokens": config.max_tokens, "cache": config.cache, "keep": config.keep}
    if config.encoder == "hf":
        return HFEncoder(config.name or MATSCIBERT, **frozen)  # type: ignore[arg-type]
    decoder, tokenizer, info = load_checkpoint(config.name or resource_path("resources/model"))
    return DecoderEncoder(decoder, tokenizer, info, **frozen)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PredictorConfig:
    structure: StructureConfig | None = field(default_factory=StructureConfig)
    text: TextConfig | None = field(default_factory=TextConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if self.structure is None and self.text is None:
            raise ValueError("structure and text are both none: the predictor would know nothing of a crystal")


def texts_of(config: PredictorConfig) -> Texts:
    """Which texts of a sample its encoders read"""
    if config.text is None:
        return Texts()
    return Texts(description=config.text.reads == "description", canonical=config.text.reads == "canonical")


def build_predictor(config: PredictorConfig, targets: Iterable[Target]) -> PropertyPredictor:
    encoders: list[Encoder] = []
    if config.structure is not None:
        encoders.append(make_structure_encoder(config.structure))
    if config.text is not None:
        encoders.append(make_text_encoder(config.text))
    return PropertyPredictor(encoders, list(targets), config.head)


def predictor_info(config: PredictorConfig, targets: Iterable[Target]) -> dict[str, Any]:
    """What a checkpoint's config.json says of the model"""
    info = {"predictor": to_dict(config), "targets": [to_dict(target) for target in targets]}
    return info if config.text is None else info | {"words": vocabulary_hash()}


@torch.no_grad()
def load_predictor(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[PropertyPredictor, PredictorConfig, dict[str, Any]]:
    """(model in evaluation mode, its config, info) from a checkpoint folder, or from a run's folder: its best.

    The moving average where there is one. ValueError for a checkpoint of another kind.
    """
    folder = resolve_checkpoint(path)
    config_file = folder / "config.json" if folder.is_dir() else folder
    info = json.loads(config_file.read_text(encoding="utf-8")) if folder.is_dir() else {}
    if "predictor" not in info:
        raise ValueError(
            f"{folder}: not a property predictor; wanted a checkpoint of bin/train.py config/predictor_*.yaml"
        )
    config = from_dict(PredictorConfig, info["predictor"], where=f"{config_file}: ")
    if config.text is not None and config.text.encoder == "words" and info.get("words") != vocabulary_hash():
        raise ValueError(f"{folder}: trained with another vocabulary of words; this version of crystallm reads others")
    targets = [from_dict(Target, target, where=f"{config_file}: targets: ") for target in info["targets"]]
    model = build_predictor(config, targets)
    file = next(f for f in (folder / "ema.safetensors", folder / "model.safetensors") if f.is_file())
    _load(model, load_file(file), file)
    info |= {"path": str(folder), "model_hash": hashlib.sha256(file.read_bytes()).hexdigest()}
    return model.to(device).eval(), config, info


def _load(model: PropertyPredictor, tensors: Mapping[str, Tensor], file: Path) -> None:
    parameters = dict(model.named_parameters())
    if odd := sorted(set(parameters) ^ set(tensors)):
        raise ValueError(f"{file}: {odd[0]} is {'missing' if odd[0] in parameters else 'unknown'} ({len(odd)} such)")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def is_predictor(path: str | Path) -> bool:
    """Whether a checkpoint is a property predictor's. FileNotFoundError where there is none."""
    config = resolve_checkpoint(path) / "config.json"
    return config.is_file() and "predictor" in json.loads(config.read_text(encoding="utf-8"))


def export_predictor(source: str | Path, target: str | Path) -> Path:
    """Write the weights alone, in 16 bits, with their config.json; files of other names in `target` stay."""
    model, _, info = load_predictor(source)
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"{source}: its weights do not fit 16 bits")
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    kept = {key: value for key, value in info.items() if key not in ("path", "model_hash")}
    (folder / "config.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return folder
