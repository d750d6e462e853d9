"""The vectors that a model learned for elements, space groups and numbers: as files, pictures and figures.

A token has one vector for input and output. Similarity is the cosine after the mean of the class is taken away, and
the tokens that training hardly met are left out of means, neighbours and figures: their vectors were pushed aside by
the softmax and never asked for.
"""

from __future__ import annotations

import csv
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.data.shards import ShardError, Shards, open_shards
from crystallm.space_groups import space_group
from tokenizer.elements import ATOMIC_NUMBERS

if TYPE_CHECKING:
    from crystallm.model.gpt import GPT
    from tokenizer import CIFTokenizer

ELEMENT_CLASSES = ("formula_element", "site_element", "element")  # the last is CrystaLLM's
COUNTS_FILE = "token_counts.npz"  # beside a model's weights: how many training structures hold each token
MIN_STRUCTURES = 20


@dataclass(frozen=True, eq=False)
class ClassVectors:
    """The vectors of one class of tokens, such as the elements of a formula."""

    name: str  # "site_element", "space_group", "length", …
    labels: tuple[str, ...]  # "Na"; "Fm-3m"; "5.64"
    values: np.ndarray  # (n,) float64: atomic number, space-group number, or the number itself
    vectors: np.ndarray  # (n, width) float32
    n_structures: np.ndarray  # (n,) int64: training structures that hold the token; -1: not known
    min_structures: int = MIN_STRUCTURES

    @functools.cached_property
    def met(self) -> np.ndarray:
        """(n,) bool: met in training often enough to be compared; all where that is not known."""
        return (self.n_structures < 0) | (self.n_structures >= self.min_structures)

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """(n_met, width): the mean taken away, then of length 1."""
        vectors = self.vectors[self.met].astype(np.float64)
        vectors = vectors - vectors.mean(axis=0)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def similarity(self) -> np.ndarray:
        """(n_met, n_met) cosines."""
        return self.directions @ self.directions.T

    def principal(self, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """(n_met, n) principal components of the directions, and the share of variance of each (n,)."""
        centred = self.directions - self.directions.mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        components = (u * s)[:, :n]
        signs = np.where(components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])] < 0, -1, 1)
        return components * signs, (s**2 / (s**2).sum())[:n]

    def nearest(self) -> np.ndarray:
        """(n_met,): among the tokens met, the index of each one's nearest."""
        similarity = self.similarity()
        np.fill_diagonal(similarity, -np.inf)
        return similarity.argmax(axis=1)

    def met_labels(self) -> list[str]:
        return [label for label, met in zip(self.labels, self.met, strict=True) if met]


def class_vectors(
    model: GPT, tokenizer: CIFTokenizer, counts: np.ndarray | None = None, min_structures: int = MIN_STRUCTURES
) -> list[ClassVectors]:
    """Elements, space groups and each class of numbers, of any vocabulary whose tokens are these.

    `counts` (vocab_size,): training structures that hold each token. A class of numbers that training never met
    (property lines, mostly) is left out.
    """
    import torch

    with torch.no_grad():
        table = model.table().float().cpu().numpy()  # (vocab_size, width)
    vocabulary, found = tokenizer.vocabulary, []
    for name, ids in vocabulary.classes.items():
        labels = [tokenizer.token(int(i)).strip().removesuffix("_sg") for i in ids]
        if name in ELEMENT_CLASSES:
            values = np.array([ATOMIC_NUMBERS[label] for label in labels], dtype=np.float64)
        elif name == "space_group":
            values = np.array([space_group(label).number for label in labels], dtype=np.float64)
        elif np.isfinite(vocabulary.values[ids]).all() and len(ids) >= 3:
            values = np.array([float(label) for label in labels])  # the vocabulary keeps them in float32
        else:
            continue
        order = np.argsort(values, kind="stable")
        ids = ids[order]
        n_structures = np.full(len(ids), -1, dtype=np.int64) if counts is None else counts[ids].astype(np.int64)
        found.append(
            ClassVectors(name, tuple(labels[i] for i in order), values[order], table[ids], n_structures, min_structures)
        )
    return [vectors for vectors in found if vectors.met.sum() >= 3]


def count_structures(shards: Shards, longest: int) -> np.ndarray:
    """(highest id + 1,) int64: structures of at most `longest` tokens that hold each token."""
    counts = np.zeros(int(shards.tokens.max(initial=0)) + 1, dtype=np.int64)
    chosen = np.flatnonzero(shards.lengths <= longest)
    for start in range(0, len(chosen), 512):
        part = [shards[int(i)] for i in chosen[start : start + 512]]
        holds = np.zeros((len(part), len(counts)), dtype=bool)
        holds[np.repeat(np.arange(len(part)), [len(ids) for ids in part]), np.concatenate(part)] = True
        counts += holds.sum(axis=0)
    return counts


def training_counts(
    model: GPT, tokenizer: CIFTokenizer, info: dict[str, Any], data: str | Path | None = None
) -> tuple[np.ndarray | None, str]:
    """((vocab_size,) training structures that hold each token, where that is known from).

    From the shards `data`; else from the file that lies beside the model; else from the shards that the model was
    trained on, if they are still where they were; else None.
    """
    beside = _folder(info["path"]) / COUNTS_FILE
    if data is None and beside.is_file():
        with np.load(beside) as archive:
            if str(archive["vocabulary_hash"]) != tokenizer.hash:
                raise ShardError(f"{beside}: counts of another vocabulary than the model's {tokenizer.name!r}")
            return archive["counts"].astype(np.int64), str(beside)
    run = info.get("run", {}).get("data", {})
    trained_on = data or run.get("path")
    if trained_on is None or (data is None and not Path(trained_on).is_dir()):
        return None, "not known: every token counts as met (name the training shards)"
    longest = min(model.config.block_size, run.get("max_tokens") or model.config.block_size)
    found = count_structures(open_shards(trained_on, "train", tokenizer.hash), longest)
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    counts[: len(found)] = found
    return counts, str(trained_on)


def save_counts(folder: str | Path, counts: np.ndarray, tokenizer: CIFTokenizer) -> Path:
    """The file that training_counts looks for beside a model."""
    path = _folder(folder) / COUNTS_FILE
    np.savez_compressed(path, counts=counts.astype(np.int32), vocabulary_hash=np.array(tokenizer.hash))
    return path


def _folder(path: str | Path) -> Path:
    """A checkpoint is a folder, or CrystaLLM's one file."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


# ------------------------------------------------------------------ files


def embedding_files(model: GPT, tokenizer: CIFTokenizer, folder: str | Path) -> list[Path]:
    """All that write_embeddings may write"""
    endings = (".npz", ".csv", ".png", "_map.png", "_table.png")
    names = [f"{vectors.name}{ending}" for vectors in class_vectors(model, tokenizer) for ending in endings]
    return [Path(folder, name) for name in (*names, "summary.json")]


def write_embeddings(
    model: GPT,
    tokenizer: CIFTokenizer,
    info: dict[str, Any],
    folder: str | Path,
    data: str | Path | None = None,
    min_structures: int = MIN_STRUCTURES,
    n_permutations: int = 9999,
) -> dict[str, Any]:
    """For each class NAME.npz (labels, values, vectors, n_structures) and pictures; summary.json, which is returned.

    Elements also get NAME.csv, in the form that matminer and ElementEmbeddings read: element, 0, 1, 2, …
    """
    from crystallm.report.embedding_pictures import figures_of
    from crystallm.report.embedding_tests import element_tests, number_similarities, space_group_tests

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts, source = training_counts(model, tokenizer, info, data)
    summary: dict[str, Any] = {
        "model": info["path"],
        "model_hash": info["model_hash"],
        "vocabulary": tokenizer.name,
        "counts_from": source,
        "min_structures": min_structures,
        "classes": {},
    }
    for vectors in class_vectors(model, tokenizer, counts, min_structures):
        name = vectors.name
        np.savez_compressed(
            folder / f"{name}.npz",
            labels=np.array(vectors.labels),
            values=vectors.values,
            vectors=vectors.vectors,
            n_structures=vectors.n_structures,
        )
        entry: dict[str, Any] = {"n": len(vectors.labels), "n_met": int(vectors.met.sum())}
        if name in ELEMENT_CLASSES:
            _write_element_table(folder / f"{name}.csv", vectors)
            entry["tests"] = [asdict(test) for test in element_tests(vectors, n_permutations)]
            entry["left_out"] = [label for label, met in zip(vectors.labels, vectors.met, strict=True) if not met]
        elif name == "space_group":
            entry["tests"] = [asdict(test) for test in space_group_tests(vectors, n_permutations)]
        else:
            entry["mean_cosine"] = number_similarities(vectors)
        for ending, figure in figures_of(vectors).items():
            figure.savefig(folder / f"{name}{ending}.png")
        summary["classes"][name] = entry
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _write_element_table(path: Path, vectors: ClassVectors) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["element", *range(vectors.vectors.shape[1])])
        for label, met, vector in zip(vectors.labels, vectors.met, vectors.vectors, strict=True):
            if met:
                writer.writerow([label, *(f"{x:.6g}" for x in vector)])
