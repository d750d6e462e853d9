"""The texts of finished shards in another vocabulary or description, to compare these on the same structures."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystallm.asymmetric_unit import COORDINATE_DECIMALS, AsymmetricUnit, CanonicalError
from crystallm.canonical import canonicalize
from crystallm.cif import CIFError, parse_cif
from crystallm.data.descriptions import random_description
from crystallm.data.readers import read_sources
from crystallm.data.shards import META, ShardError, Shards, ShardWriter, open_shards, read_meta, write_meta
from crystallm.layout import layout_of
from crystallm.output import check_is_folder
from crystallm.records import CIFRecord
from tokenizer import CIFTokenizer
from tokenizer.pieces import (
    GPT2_WORDS,
    WORDS,
    bin_offset_spec,
    cell_last_spec,
    characters_spec,
    digits_spec,
    fine_grid_spec,
    pattern_of,
    pieces_spec,
    whole_spec,
)
from tokenizer.vocabulary import BUILT_IN, vocabulary_from_spec

VOCABULARY_FILE = "vocabulary.json"  # beside shards whose vocabulary is none of the built-in ones
PATTERNS = {"bpe": WORDS, "bpe_gpt2": GPT2_WORDS}
SPECS: dict[str, Callable[[], str]] = {
    "digits": digits_spec,
    "characters": characters_spec,
    "whole": whole_spec,
    "cell_last": cell_last_spec,
    "bin_offset": bin_offset_spec,
    "fine_grid": fine_grid_spec,
}
NAMES = (*SPECS, *PATTERNS)
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
    records: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Write all splits of the shards `source` anew into the folder `out`; the new meta.json, which is returned.

    `vocabulary`: one of SPECS, bpe or bpe_gpt2 (learned here, from `bpe_structures` random texts of the train split), a
    built-in one, or a file; texts are laid out as it wants them. `longest`: leave out structures of more tokens in the
    *source* vocabulary, so that each vocabulary trains on the same ones; meta.json counts them.
    `random_descriptions`: so many of each structure of the train split (ids mp-1~1, mp-1~2, …) and one of the others,
    instead of the text. `records`: the CIFs by their ids; a finer grid than the source's needs them, as its digits are
    not in the shards. What has no description on that grid is left out and counted by reason. Raises ShardError,
    and ValueError for arguments that make no sense.
    """
    source, out = Path(source), Path(out)
    check_is_folder(out)
    if random_descriptions < 0:
        raise ValueError(f"random_descriptions must be 0 (the texts themselves) or more, got {random_descriptions}")
    if (out / META).exists():
        raise ShardError(f"{out}: finished shards lie here already; choose another folder")
    meta = read_meta(source)
    old = shards_tokenizer(source)
    new = _new_tokenizer(vocabulary, source, old, longest, n_merges, bpe_structures)
    read, write = layout_of(old.vocabulary).read, layout_of(new.vocabulary).write
    decimals = layout_of(new.vocabulary).coordinate_decimals
    if (decimals > COORDINATE_DECIMALS) != bool(records) or (records and random_descriptions):
        raise ShardError(
            f"{new.name!r} writes coordinates with {decimals} decimals: records are wanted for more than "
            f"{COORDINATE_DECIMALS} and for nothing else, and go without random descriptions; got {list(records)}"
        )
    counts, left_out = {}, {}
    not_described: Counter[str] = Counter()
    for split in meta["counts"]:
        shards = open_shards(source, split, old.hash)
        chosen = _short_enough(shards, longest)
        left_out[split] = len(shards) - len(chosen)
        copies = random_descriptions if split == "train" else min(random_descriptions, 1)
        finer: dict[str, str] | None = None
        if records:
            wanted = {shards.ids[i]: old.decode(shards[int(i)]) for i in chosen}
            finer, failed = _finer_texts(wanted, records, meta.get("config", {}), decimals)
            not_described += failed
            chosen = np.array([i for i in chosen if shards.ids[i] in finer], dtype=np.int64)
        with ShardWriter(out, split, shards.properties) as writer:
            for start in tqdm(range(0, len(chosen), CHUNK), desc=split, unit=f" × {CHUNK}"):
                entries = []
                for i in chosen[start : start + CHUNK].tolist():
                    text = read(old.decode(shards[i])) if finer is None else finer[shards.ids[i]]
                    named = _texts(shards.ids[i], text, copies, seed)
                    entries += [(i, name, write(one)) for name, one in named]
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
            "records": [str(path) for path in records],
            "not_described": dict(not_described),
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
        read = layout_of(old.vocabulary).read
        texts = (read(old.decode(train[int(i)])) for i in np.sort(chosen))
        return CIFTokenizer(vocabulary_from_spec(bpe_spec(texts, n_merges, f"{name}_{n_merges}", PATTERNS[name])))
    if name in SPECS:
        return CIFTokenizer(vocabulary_from_spec(SPECS[name]()))
    if name not in BUILT_IN and not Path(vocabulary).is_file():
        names = ", ".join(dict.fromkeys((*NAMES, *BUILT_IN)))
        raise ValueError(f"no vocabulary {name!r}; wanted {names}, or a vocabulary file")
    return CIFTokenizer(vocabulary, on_unknown="raise")


def _texts(name: str, text: str, copies: int, seed: int) -> list[tuple[str, str]]:
    """(id, text): the text itself, or random descriptions, which depend on the id, the copy and the seed alone."""
    if not copies:
        return [(name, text)]
    unit = AsymmetricUnit.from_text(text)
    generators = [np.random.default_rng([seed, copy, *name.encode()]) for copy in range(copies)]
    return [(f"{name}~{k}", random_description(unit, rng).to_text()) for k, rng in enumerate(generators, 1)]


def _finer_texts(
    wanted: dict[str, str], paths: Sequence[str | Path], config: dict[str, Any], decimals: int
) -> tuple[dict[str, str], Counter[str]]:
    """Canonical texts with so many decimals, by id, and how many have none, by reason.

    `wanted`: id -> the text in the shards; `config`: of the preparation, for the columns of tables. Raises ShardError
    where a record is missing, or is another compound than the shards'.
    """
    columns = {"cif_column": config.get("cif_column", "cif"), "id_column": config.get("id_column")}
    chosen = (record for record in read_sources(paths, **columns) if record.id in wanted)
    found: dict[str, str] = {}
    failed: dict[str, str] = {}
    describe = functools.partial(_finer_text, decimals=decimals)
    for name, text, reason in tqdm(map(describe, chosen), total=len(wanted), desc="describe anew"):
        if reason is not None:
            failed[name] = reason
        elif text.partition("\n")[0] != wanted[name].partition("\n")[0]:
            raise ShardError(f"{name}: {text[:40]!r}… among the records, {wanted[name][:40]!r}… in the shards")
        else:
            found[name] = text
    if missing := [name for name in wanted if name not in found and name not in failed]:
        raise ShardError(f"{len(missing):,} structures are not among the records, the first is {missing[0]!r}")
    return found, Counter(reason for name, reason in failed.items() if name not in found)


def _finer_text(record: CIFRecord, decimals: int) -> tuple[str, str, str | None]:
    """(id, text, why there is none)"""
    if record.rejected_by is not None:
        return record.id, "", record.rejected_by
    try:
        crystal, _ = parse_cif(record.cif or record.text)
        return record.id, canonicalize(crystal, 10**decimals).to_text(decimals), None
    except (CIFError, CanonicalError) as err:
        return record.id, "", err.reason


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
