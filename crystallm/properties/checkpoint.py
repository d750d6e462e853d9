"""Building predictors from their configs, and reading them back from checkpoint folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from crystallm.config import from_dict, to_dict
from crystallm.model.checkpoint import load_checkpoint
from crystallm.periodic.weights import export_weights, has_key, load_weights, read_info
from crystallm.properties.encoding import Encoder
from crystallm.properties.ensemble import Ensemble
from crystallm.properties.frozen import MATSCIBERT, DecoderEncoder, HFEncoder, Keep
from crystallm.properties.graph import GraphEncoder
from crystallm.properties.predictor import HeadConfig, PropertyPredictor, Target
from crystallm.properties.samples import Texts
from crystallm.properties.structure import StructureConfig, StructureEncoder
from crystallm.properties.text import WordEncoder, vocabulary_hash


@dataclass(frozen=True)
class TextConfig:
    encoder: Literal["words", "hf", "decoder"] = "words"  # trained here; any of Hugging Face; our own CIF decoder
    name: str | None = None  # of hf: m3rg-iitd/matscibert, or another, or a folder; of decoder: a checkpoint
    width: int = 128  # of `words`, or what the frozen encoder's vectors are projected to
    n_layer: int = 2  # of `words`
    n_head: int = 4
    max_tokens: int = 512  # what a text has beyond these is not read (BERT's limit is 512)
    cache: str = "data/encodings.sqlite3"  # what a frozen encoder said of each text
    keep: Keep = "tokens"  # of it: every token's vector, their means by sentence, or one mean

    def __post_init__(self) -> None:
        if self.encoder == "decoder" and self.name is None:
            raise ValueError(
                "text.encoder=decoder wants text.name, a checkpoint of the language model that was trained without "
                "property lines; the bundled one was trained with them"
            )

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
    assert config.name is not None
    decoder, tokenizer, info = load_checkpoint(config.name)
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


def load_predictor(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[PropertyPredictor | Ensemble, PredictorConfig, dict[str, Any]]:
    """(model in evaluation mode, its config, info) from a checkpoint folder, or from a run's folder: its best.

    The moving average where there is one. ValueError for a checkpoint of another kind.
    """
    folder, info = read_info(path, "predictor", "property predictor")
    where = f"{folder / 'config.json'}: "
    config = from_dict(PredictorConfig, info["predictor"], where=where)
    if config.text is not None and config.text.encoder == "words" and info.get("words") != vocabulary_hash():
        raise ValueError(f"{folder}: trained with another vocabulary of words; this version of crystallm reads others")
    targets = [from_dict(Target, target, where=f"{where}targets: ") for target in info["targets"]]
    model: PropertyPredictor | Ensemble
    if "members" in info:
        model = Ensemble([build_predictor(config, targets) for _ in info["members"]])
    else:
        model = build_predictor(config, targets)
    info |= load_weights(model, folder)
    return model.to(device).eval(), config, info


def is_predictor(path: str | Path) -> bool:
    """Whether a checkpoint is a property predictor's. FileNotFoundError where there is none."""
    return has_key(path, "predictor")


def export_predictor(source: str | Path, target: str | Path) -> Path:
    """Write the weights alone, in 16 bits, and their config.json, replacing an earlier export (see `check_export`)."""
    model, _, info = load_predictor(source)
    return export_weights(model, info, target)
