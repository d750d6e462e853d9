"""The texts of finished shards in another vocabulary or description, to compare these on the same structures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.data.descriptions import random_description
from crystallm.data.shards import META, ShardError, Shards, ShardWriter, open_shards, read_meta, write_meta
from tokenizer import CIFTokenizer
from tokenizer.pieces import GPT2_WORDS, WORDS, characters_spec, digits_spec, pattern_of, pieces_spec
from tokenizer.vocabulary import BUILT_IN, vocabulary_from_spec

VOCABULARY_FILE = "vocabulary.json"  # beside shards whose vocabulary is none of the built-in ones
PATTERNS = {"bpe": WORDS, "bpe_gpt2": GPT2_WORDS}
NAMES = ("digits", *PATTERNS, "characters")
CHUNK = 4096  # structures


def retokenize(
    source: str | Path,
    out: str | Path,
    vocabulary: str | Path = "cif",
    longest: int | None = None,
    n_merges: int = 2000,
    bpe_structures: int = 20_000,
    random_descriptions: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Write all splits of the shards `source` anew into the folder `out`; the new meta.json, which is returned.

    `vocabulary`: digits, characters, bpe or bpe_gpt2 (learned here, from `bpe_structures` random texts of the train
    split), a built-in one, or a file. `longest`: leave out structures of more tokens in the *source* vocabulary, so
    that each vocabulary trains on the same ones; meta.json counts them. `random_descriptions`: so many of each
    structure of the train split (ids mp-1~1, mp-1~2, …) and one of the others, instead of the text. Raises ShardError.
    """
    source, out = Path(source), Path(out)
    if (out / META).exists():
        raise ShardError(f"{out}: finished shards lie here already; choose another folder")
    meta = read_meta(source)
    old = shards_tokenizer(source)
    new = _new_tokenizer(vocabulary, source, old, longest, n_merges, bpe_structures)
    counts, left_out = {}, {}
    for split in meta["counts"]:
        shards = open_shards(source, split, old.hash)
        chosen = _short_enough(shards, longest)
        left_out[split] = len(shards) - len(chosen)
        copies = random_descriptions if split == "train" else min(random_descriptions, 1)
        with ShardWriter(out, split, shards.properties) as writer:
            for start in tqdm(range(0, len(chosen), CHUNK), desc=split, unit=f" × {CHUNK}"):
                entries = [
                    (int(i), name, text)
                    for i in chosen[start : start + CHUNK]
                    for name, text in _texts(shards.ids[i], old.decode(shards[int(i)]), copies, seed)
                ]
                encoded = new.encode_batch([text for *_, text in entries])
                for (i, name, _), ids in zip(entries, encoded, strict=True):
                    if new.hash == old.hash and len(ids) != shards.lengths[i]:
                        raise ShardError(f"{name}: its new description leaves the vocabulary {new.name!r}")
                    writer.add(name, ids, {column: float(values[i]) for column, values in shards.properties.items()})
        counts[split] = writer.counts()
    if new.name not in BUILT_IN:
        (out / VOCABULARY_FILE).write_text(new.vocabulary.spec, encoding="utf-8")
    kept = {name: value for name, value in meta.items() if name in ("source", "config")}
    meta = {
        "vocabulary": new.name,
        "vocabulary_hash": new.hash,
        **kept,
        "counts": counts,
        "retokenized_from": {
            "folder": str(source),
            "vocabulary": old.name,
            "longest": longest,
            "left_out": left_out,
            "random_descriptions": random_descriptions,
            "seed": seed,
        },
    }
    write_meta(out, meta)
    return meta


def _new_tokenizer(
    vocabulary: str | Path, source: Path, old: CIFTokenizer, longest: int | None, n_merges: int, bpe_structures: int
) -> CIFTokenizer:
    name = str(vocabulary)
    if name in PATTERNS:
        train = open_shards(source, "train", old.hash)
        chosen = np.random.default_rng(0).permutation(_short_enough(train, longest))[:bpe_structures]
        texts = (old.decode(train[int(i)]) for i in np.sort(chosen))
        return CIFTokenizer(vocabulary_from_spec(bpe_spec(texts, n_merges, f"{name}_{n_merges}", PATTERNS[name])))
    if name in NAMES:
        return CIFTokenizer(vocabulary_from_spec(digits_spec() if name == "digits" else characters_spec()))
    return CIFTokenizer(vocabulary, on_unknown="raise")


def _texts(name: str, text: str, copies: int, seed: int) -> list[tuple[str, str]]:
    """(id, text): the text itself, or random descriptions, which depend on the id, the copy and the seed alone."""
    if not copies:
        return [(name, text)]
    unit = AsymmetricUnit.from_text(text)
    generators = [np.random.default_rng([seed, copy, *name.encode()]) for copy in range(copies)]
    return [(f"{name}~{k}", random_description(unit, rng).to_text()) for k, rng in enumerate(generators, 1)]


def shards_tokenizer(folder: str | Path) -> CIFTokenizer:
    """The tokenizer that shards were written with: a built-in one, or that of the file beside them."""
    folder, meta = Path(folder), read_meta(folder)
    own = folder / VOCABULARY_FILE
    tokenizer = CIFTokenizer(own if own.is_file() else meta["vocabulary"])
    if tokenizer.hash != meta["vocabulary_hash"]:
        raise ShardError(f"{folder}: written with another {meta['vocabulary']!r} than this version's")
    return tokenizer


def bpe_spec(texts: Iterable[str], n_merges: int, name: str, pattern: str = WORDS) -> str:
    """A vocabulary of byte pairs merged by how often they occur in `texts`, within the pieces that `pattern` cuts.

    Trained by Hugging Face's `tokenizers`; encoded by tiktoken as all others. Raises ValueError for texts beyond ASCII.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    def ascii_texts() -> Iterable[str]:
        for number, text in enumerate(texts):
            if not text.isascii():
                raise ValueError(f"text {number}: byte pairs are merged for ASCII texts, got {text[:60]!r}…")
            yield text.removesuffix("\n")  # the end token stands for it

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(pattern_of(pattern)), "isolated")
    alphabet = [chr(byte) for byte in range(128)]
    trained.train_from_iterator(
        ascii_texts(),
        trainers.BpeTrainer(vocab_size=len(alphabet) + n_merges, initial_alphabet=alphabet, show_progress=False),
    )
    by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return pieces_spec(name, pattern, [{"name": "piece", "tokens": [token for token, _ in by_id if len(token) > 1]}])


def _short_enough(shards: Shards, longest: int | None) -> np.ndarray:
    return np.flatnonzero(shards.lengths <= longest) if longest else np.arange(len(shards))
