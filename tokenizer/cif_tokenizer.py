"""Text to token ids and back, by tiktoken. It knows lexemes; which may follow which is the grammar's business."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tiktoken

from tokenizer.crystallm_v1 import CrystaLLMCodec, UnknownTokenWarning, missing
from tokenizer.vocabulary import Vocabulary, load_vocabulary

JOIN = 64  # documents encoded in one call: the calls of short ones cost more than their matching


class CIFTokenizer:
    """Encodes CIF text. Cheap to construct and to pickle: equal vocabularies share one encoder.

    `vocabulary`: "cif" (lossless, ours), "crystallm_v1" (the published 371 tokens) or a vocabulary file.
    `on_unknown` matters to crystallm_v1 only: "warn" encodes what it has no token for as `<unk>` and says so, "raise"
    refuses it.
    """

    def __init__(self, vocabulary: str | Path | Vocabulary = "cif", on_unknown: Literal["warn", "raise"] = "warn"):
        if on_unknown not in ("warn", "raise"):
            raise ValueError(f"on_unknown must be 'warn' or 'raise', got {on_unknown!r}")
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else load_vocabulary(vocabulary)
        self.on_unknown = on_unknown
        published = self.vocabulary.kind == "crystallm_v1"
        self._bpe = None if published else _encoding(self.vocabulary)
        self._codec = _codec(self.vocabulary) if published else None
        self._ends = self.vocabulary.kind == "pieces"  # a newline at the end of a text is the end token

    def __reduce__(self) -> tuple[Any, ...]:
        return CIFTokenizer, (self.vocabulary, self.on_unknown)

    def __repr__(self) -> str:
        return f"CIFTokenizer({self.name!r}, {self.vocab_size} tokens, {self.hash[:12]})"

    @property
    def name(self) -> str:
        return self.vocabulary.name

    @property
    def hash(self) -> str:
        """sha256 (hex) of the vocabulary; checkpoints and shards keep it."""
        return self.vocabulary.hash

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def pad_id(self) -> int:
        return self._single("pad")

    @property
    def end_id(self) -> int:
        """The newline after the last site, which ends a structure."""
        return self._single("end")

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """ "elements" and "space_groups" without a token of their own; none in the `cif` vocabulary."""
        return {"elements": (), "space_groups": ()} if self._codec is None else missing(self.vocabulary)

    def token(self, id_: int) -> str:
        """The text of one token; a byte that is no character by itself as an escape."""
        if not 0 <= id_ < self.vocab_size:
            raise ValueError(f"token id {id_} is outside 0..{self.vocab_size - 1}")
        return self.vocabulary.tokens[id_].decode("utf-8", errors="backslashreplace")

    def id(self, lexeme: str) -> int:
        try:
            return self.vocabulary.ids[lexeme.encode()]
        except KeyError:
            raise ValueError(f"{lexeme!r} is not one token of the vocabulary {self.name!r}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of any Unicode text, lossless but in `crystallm_v1`. `<|pad|>` in it is ordinary text."""
        _check_unicode(text)
        if self._bpe is None:
            return self._encode_v1(text)
        if self._ends and text.endswith("\n"):
            return [*self._bpe.encode_ordinary(text[:-1]), self.end_id]
        return self._bpe.encode_ordinary(text)

    def decode(self, ids: Iterable[int] | np.ndarray, errors: str = "strict") -> str:
        """The text of `ids`; padding decodes to nothing.

        Ids drawn without a grammar may be bytes that are no UTF-8: these raise, or follow `errors` ("replace").
        """
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: what is UTF-8 as its text, any other byte as the token of that byte."""
        if self._bpe is None:
            return self._encode_v1(data.decode("utf-8"))
        ids: list[int] = []
        # A byte that is no UTF-8 arrives as one of the lone surrogates U+DC80 to U+DCFF.
        for text, stray in re.findall(
            "([^\udc80-\udcff]+)|([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape")
        ):
            ids += self.encode(text) if text else stray.encode("utf-8", "surrogateescape")
        return ids

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        array = np.asarray(ids if hasattr(ids, "__array__") or isinstance(ids, Sequence) else list(ids))  # (n,)
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"ids must be one row of integers, got shape {array.shape} of {array.dtype}")
        if array.min() < 0 or array.max() >= self.vocab_size:
            at = int(np.flatnonzero((array < 0) | (array >= self.vocab_size))[0])
            raise ValueError(f"token {at}: id {array[at]} is outside 0..{self.vocab_size - 1} of {self.name!r}")
        if self._codec is not None:
            return self._codec.decode(array.tolist()).encode()
        return b"".join(map(_printed(self.vocabulary).__getitem__, array.tolist()))

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text, as (n,) uint16 arrays; documents are joined to keep the encoder busy."""
        if self._bpe is None or self._ends:
            return [np.array(self.encode(text), dtype=np.uint16) for text in texts]
        groups = list(_joinable_groups(texts))
        if threads == 1:
            encoded = [self._encode_joined(group) for group in groups]
        else:
            with ThreadPoolExecutor(threads) as pool:  # tiktoken leaves Python's lock while it matches
                encoded = list(pool.map(self._encode_joined, groups))
        return [ids for group in encoded for ids in group]

    def _encode_joined(self, texts: list[str]) -> list[np.ndarray]:
        assert self._bpe is not None
        ids = self._bpe.encode_to_numpy("".join(texts), disallowed_special=()).astype(np.uint16)  # (n,)
        if len(texts) == 1:
            return [ids]
        n_bytes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        token_ends = np.cumsum(_token_lengths(self.vocabulary)[ids])  # (n,) bytes up to and with token i
        ends = np.searchsorted(token_ends, np.cumsum(n_bytes)) + 1
        return np.split(ids, ends[:-1])

    def _encode_v1(self, text: str) -> list[int]:
        assert self._codec is not None
        ids, lacks = self._codec.encode(text)
        if lacks and self.on_unknown == "raise":
            raise ValueError(lacks)
        if lacks:
            warnings.warn(lacks, UnknownTokenWarning, stacklevel=3)
        return ids

    def _single(self, class_name: str) -> int:
        if class_name not in self.vocabulary.classes:
            raise ValueError(f"the vocabulary {self.name!r} has no {class_name!r} token")
        return int(self.vocabulary.classes[class_name][0])


@functools.cache
def _encoding(vocabulary: Vocabulary) -> tiktoken.Encoding:
    n_special = 2 if vocabulary.kind == "pieces" else 1
    ids = list(vocabulary.ids.items())
    return tiktoken.Encoding(
        vocabulary.name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=dict(ids[:-n_special]),
        special_tokens={token.decode(): id_ for token, id_ in ids[-n_special:]},
    )


@functools.cache
def _codec(vocabulary: Vocabulary) -> CrystaLLMCodec:
    return CrystaLLMCodec(vocabulary)


@functools.cache
def _printed(vocabulary: Vocabulary) -> tuple[bytes, ...]:
    """What each id decodes to: its bytes, a newline for the end token of pieces, and nothing for padding."""
    if vocabulary.kind == "pieces":
        return (*vocabulary.tokens[:-2], b"\n", b"")
    return (*vocabulary.tokens[:-1], b"")


@functools.cache
def _token_lengths(vocabulary: Vocabulary) -> np.ndarray:
    return np.array([len(token) for token in vocabulary.tokens], dtype=np.int64)  # (vocab_size,)


def _check_unicode(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise ValueError(
            f"lone surrogate {text[err.start]!r} at position {err.start}: it stands for no character, so there are no "
            "bytes to encode; encode_bytes takes bytes that are no text"
        ) from None


def _joinable_groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of up to JOIN texts whose concatenation has the tokens of its parts.

    It has where each text ends its last line and the next begins one of a canonical CIF: no lexeme spans that seam.
    """
    group: list[str] = []
    for index, text in enumerate(texts):
        try:
            _check_unicode(text)
        except ValueError as err:
            raise ValueError(f"text {index}: {err}") from None
        fits = group and len(group) < JOIN and group[-1].endswith("\n") and text.startswith(("data_", "# "))
        if group and not fits:
            yield group
            group = []
        group.append(text)
    if group:
        yield group
