"""Texts read by a model that was trained for something else and stays as it is; only a projection on top is trained.

Any encoder of Hugging Face over descriptions, or our own CIF decoder over canonical texts. What the model said of a
text is kept on disk, by the text, the model's weights and the length limit: no text is read twice. The frozen weights
belong to no state_dict; a checkpoint of a predictor names the model instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crystallm.hub import resolve_checkpoint
from crystallm.properties.encoding import Encoder, Encoding
from crystallm.properties.encoding_cache import EncodingCache

if TYPE_CHECKING:
    from tokenizer import CIFTokenizer

Keep = Literal["tokens", "sentences", "mean"]
KEEP: tuple[Keep, ...] = ("tokens", "sentences", "mean")
MATSCIBERT = "m3rg-iitd/matscibert"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_MAX_BATCH = 32  # texts that the frozen model reads at once


class Spans(NamedTuple):
    """Of one text, a row for each vector of its encoding: text[start:end], and which sentence or line, from 0."""

    starts: list[int]
    ends: list[int]
    sentences: list[int]


@dataclass(frozen=True, eq=False)
class FrozenPart:
    vectors: Tensor  # (B, T, width of the frozen model) float16
    mask: Tensor  # (B, T) bool

    def to(self, device: torch.device | str) -> FrozenPart:
        return FrozenPart(self.vectors.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


class Frozen:
    """Holds a model out of sight of the module that uses it: no parameter of it is listed, saved or copied."""

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    def to(self, device: torch.device | str) -> nn.Module:
        return self.model.to(device)


class FrozenEncoder(Encoder):
    """`keep`: vectors of each token; their means over each sentence or line; or the mean of all.

    On disk they take 2 bytes a number: 128,000 descriptions of 200 tokens at width 768 are 39 GB, of 15 sentences 3 GB,
    means 0.2 GB.
    """

    modality = "text"

    def __init__(
        self, model_hash: str, model_width: int, width: int, max_tokens: int, cache: str | Path, keep: Keep = "tokens"
    ):
        super().__init__()
        if keep not in KEEP:
            raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more, got {max_tokens}")
        self.model_hash, self.width, self.max_tokens, self.keep = model_hash, width, max_tokens, keep
        self.cache = EncodingCache(cache, model_width)
        self.projection = nn.Sequential(nn.LayerNorm(model_width), nn.Linear(model_width, width))
        self.n_read = 0  # texts that the model itself was asked about

    def collate(self, items: Sequence[Any]) -> FrozenPart:
        """From the cache, or from the model. What exceeds `max_tokens` is cut. ValueError for an empty text."""
        texts = [str(item) for item in items]
        for k, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {k} is empty: {text!r}; leave the text out, or write a word")
        keys = [self._key(text) for text in texts]
        known = self.cache.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            read = dict(zip(missing, self._read(list(missing.values())), strict=True))
            self.cache.put(read)
            known |= read
        rows = [known[key] for key in keys]
        longest = max(len(row) for row in rows)
        vectors = np.zeros((len(rows), longest, rows[0].shape[1]), dtype=np.float16)
        for k, row in enumerate(rows):
            vectors[k, : len(row)] = row
        mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
        return FrozenPart(torch.from_numpy(vectors), torch.from_numpy(mask))

    def forward(self, part: FrozenPart) -> Encoding:
        dtype = next(self.projection.parameters()).dtype
        return Encoding(self.projection(part.vectors.to(dtype)), part.mask)

    def spans(self, item: Any) -> Spans:
        """What each vector of a text's encoding stands for; in the order of the encoding."""
        text = str(item)
        starts, ends = self._offsets(text)
        sentences = _sentences(text, starts)
        if self.keep == "tokens":
            return Spans(starts, ends, sentences)
        groups = _groups(sentences, self.keep)
        return Spans(
            [min(starts[k] for k in group) for group in groups],
            [max(ends[k] for k in group) for group in groups],
            [sentences[group[0]] for group in groups],
        )

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.model_hash}\0{self.max_tokens}\0{self.keep}\0{text}".encode()).digest()

    def _read(self, texts: Sequence[str]) -> Iterator[NDArray[np.float16]]:
        self.n_read += len(texts)
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # of like lengths together: less padding
        found: dict[int, NDArray[np.float16]] = {}
        for first in range(0, len(texts), _MAX_BATCH):
            batch = order[first : first + _MAX_BATCH]
            hidden = self._hidden([texts[k] for k in batch])
            for k, vectors in zip(batch, hidden, strict=True):
                found[k] = self._reduced(texts[k], vectors.float())
        yield from (found[k] for k in range(len(texts)))

    def _reduced(self, text: str, vectors: Tensor) -> NDArray[np.float16]:
        """(T, C) -> (n kept, C)"""
        if self.keep != "tokens":
            groups = _groups(_sentences(text, self._offsets(text)[0]), self.keep)
            vectors = torch.stack([vectors[group].mean(dim=0) for group in groups])
        halves = vectors.cpu().numpy().astype(np.float16)
        if not np.isfinite(halves).all():
            raise ValueError(f"the frozen encoder's vectors of {text[:40]!r}… do not fit 16 bits")
        return halves

    def _hidden(self, texts: Sequence[str]) -> list[Tensor]:
        """The last hidden states of each text, (T, model_width), by the model itself."""
        raise NotImplementedError

    def _offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Where each token of a text begins and ends, as many as `_hidden` gives vectors."""
        raise NotImplementedError

    @property
    def _device(self) -> torch.device:
        return next(self.projection.parameters()).device


def _sentences(text: str, starts: Sequence[int]) -> list[int]:
    """(n_tokens,): the sentence or line that each token begins in"""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return np.searchsorted(ends, np.asarray(starts), side="right").tolist()


def _groups(sentences: Sequence[int], keep: Keep) -> list[list[int]]:
    """Tokens by sentence, or all of them"""
    if keep == "mean":
        return [list(range(len(sentences)))]
    groups: dict[int, list[int]] = {}
    for k, sentence in enumerate(sentences):
        groups.setdefault(sentence, []).append(k)
    return list(groups.values())


class HFEncoder(FrozenEncoder):
    """A frozen encoder of Hugging Face, by its name there or by the folder of a copy.

    Raises ImportError without `transformers`, FileNotFoundError where the model cannot be had.
    """

    reads = "description"

    def __init__(
        self,
        name_or_folder: str = MATSCIBERT,
        width_out: int = 128,
        max_tokens: int = 256,
        cache: str | Path = "data/encodings.sqlite3",
        keep: Keep = "tokens",
    ):
        model, tokenizer = _load_hf(name_or_folder)
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and max_tokens > longest:
            raise ValueError(f"{name_or_folder} reads {longest} tokens at most, got max_tokens={max_tokens}")
        digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(key.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        super().__init__(digest.hexdigest(), model.config.hidden_size, width_out, max_tokens, cache, keep)
        self.frozen, self.tokenizer = Frozen(model), tokenizer

    @torch.no_grad()
    def _hidden(self, texts: Sequence[str]) -> list[Tensor]:
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self._device)
        hidden = self.frozen.to(self._device)(**inputs).last_hidden_state  # (B, T, C)
        return [row[mask.bool()] for row, mask in zip(hidden, inputs["attention_mask"], strict=True)]

    def _offsets(self, text: str) -> tuple[list[int], list[int]]:
        found = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)
        offsets = [tuple(offset) for offset in found["offset_mapping"]]
        # Tokens that stand for no character, such as [SEP] at the end, have (0, 0): they belong where they stand.
        starts, ends, place = [], [], 0
        for start, end in offsets:
            starts.append(start if end > start else place)
            ends.append(end if end > start else place)
            place = ends[-1]
        return starts, ends


def _load_hf(name: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as err:
        raise ImportError(
            f"text encoder {name!r} needs transformers: install crystallm with its extra `hf`, "
            "or take the text encoder 'words', which needs nothing"
        ) from err
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as err:
        reason = str(err).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"text encoder {name!r} cannot be had: it is no folder with a model, nor to be downloaded ({reason}); "
            "give the folder of a copy, or take the text encoder 'words'"
        ) from err
    if not tokenizer.is_fast:
        raise ValueError(f"text encoder {name!r}: its tokenizer does not tell where its tokens stand in a text")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return (model.get_encoder() if model.config.is_encoder_decoder else model), tokenizer


class DecoderEncoder(FrozenEncoder):
    """Our own CIF decoder's hidden states over canonical texts; what exceeds its block is cut.

    `decoder`, `tokenizer` and `info` as crystallm.model.checkpoint.load_checkpoint gives them. Raises ValueError for a
    decoder that may have been trained with property lines (`check_no_property_lines`).
    """

    reads = "canonical"

    def __init__(
        self,
        decoder: nn.Module,
        tokenizer: CIFTokenizer,
        info: Mapping[str, Any],
        width_out: int = 128,
        max_tokens: int = 256,
        cache: str | Path = "data/encodings.sqlite3",
        keep: Keep = "tokens",
    ):
        if tokenizer.name == "crystallm_v1":
            raise ValueError(f"{info.get('path')}: a CrystaLLM model reads its own form of CIF, not canonical texts")
        check_no_property_lines(info)
        config: Any = decoder.config
        super().__init__(info["model_hash"], config.n_embd, width_out, min(max_tokens, config.block_size), cache, keep)
        self.frozen, self.tokenizer = Frozen(decoder), tokenizer

    def collate(self, items: Sequence[str]) -> FrozenPart:
        for k, text in enumerate(items):
            if text.startswith("# "):
                line = text.partition("\n")[0]
                raise ValueError(
                    f"text {k} states a property, {line!r}: a predictor may read none; leave such lines out"
                )
        return super().collate(items)

    @torch.no_grad()
    def _hidden(self, texts: Sequence[str]) -> list[Tensor]:
        rows = [self.tokenizer.encode(text)[: self.max_tokens] for text in texts]
        ids = np.full((len(rows), max(map(len, rows))), self.tokenizer.pad_id, dtype=np.int64)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = row
        hidden = self.frozen.to(self._device)(torch.from_numpy(ids).to(self._device))  # (B, T, C)
        return [hidden[k, : len(row)] for k, row in enumerate(rows)]  # causal: padding behind changes nothing

    def _offsets(self, text: str) -> tuple[list[int], list[int]]:
        lengths = [len(self.tokenizer.token(id_)) for id_ in self.tokenizer.encode(text)[: self.max_tokens]]
        ends = np.cumsum(lengths).tolist()
        return [0, *ends[:-1]], ends


def check_no_property_lines(info: Mapping[str, Any]) -> None:
    """ValueError unless config.json shows that a decoder never read a property line, nor did what it started from.

    A checkpoint that another was started from is looked up where the run says that it was, and taken for that one if
    its weights have the hash that was noted. Models of the published CrystaLLM vocabulary know no property lines.
    """
    where = info.get("path", "the decoder")
    advice = "take one that was trained without property lines (data.properties empty), or the text encoder 'words'"
    while info["vocabulary"] != "crystallm_v1":
        run = info.get("run")
        if run is None:
            raise ValueError(f"{where}: config.json does not say what the decoder was trained on; {advice}")
        if properties := run["data"].get("properties"):
            raise ValueError(
                f"{where}: this decoder was trained with property lines ({', '.join(properties)}), which would tell a "
                f"predictor what it is to predict; {advice}"
            )
        base = run.get("init_from")
        if base is None:
            return
        info = _base_info(base, info.get("provenance", {}).get("init_from"), str(where), advice)
        where = f"{where}, started from {base}"


def _base_info(base: str, model_hash: str | None, where: str, advice: str) -> dict[str, Any]:
    """config.json of the checkpoint that another was started from."""
    try:
        folder = resolve_checkpoint(base)
    except FileNotFoundError:
        folder = None
    if folder is not None and folder.is_dir():
        for file in sorted(folder.glob("*.safetensors")):
            if hashlib.sha256(file.read_bytes()).hexdigest() == model_hash:
                found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                return found
    raise ValueError(
        f"{where}: this decoder was started from {base}, which is not there any more, so it is not known whether that "
        f"one read property lines; {advice}"
    )
