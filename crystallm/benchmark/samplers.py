"""What draws the samples of a benchmark: language model, diffusion model or memory, told the same of each row."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.benchmark.judge import Judged
from crystallm.cif_write import write_cif
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord
from crystallm.refine.batch import at_once
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.diffusion import Sampler as Denoising
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.known import RECORDS_FILE, known_crystals
from crystallm.sample.prompts import Prompt, PromptError, benchmark_prompt


@dataclass(frozen=True)
class Drawn:
    records: list[CIFRecord]  # as many as wanted of each row asked, in the order of `asked`
    asked: list[int]
    refused: dict[int, str]  # why a row could not be asked
    n_known: int = 0  # samples of known crystals, in whose place others were drawn


class RowSampler(Protocol):
    @property
    def default_select(self) -> tuple[str, ...]:
        """Ways to select an answer for which its records have the scores."""

    @property
    def model_hash(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def known(self) -> str | None:
        """Which crystals another sample is drawn in place of; None: of none."""

    def draw(self, crystals: Mapping[int, Crystal], seed: int) -> Drawn:
        """Samples for the rows, told the composition of their cells alone."""

    def nats(self, judged: Sequence[Judged]) -> dict[str, float | int]: ...


@dataclass(frozen=True, eq=False)
class TextSampler:
    generator: Generator
    config: GenerateConfig
    formula_only: bool = False
    default_select: tuple[str, ...] = ("likelihood", "self_consistency")

    @property
    def model_hash(self) -> str:
        return str(self.generator.info.get("model_hash", ""))

    @property
    def device(self) -> str:
        return str(next(self.generator.model.parameters()).device)

    @property
    def known(self) -> str | None:
        known = known_crystals(self.config.known, self.generator.info) if self.config.novel else None
        return None if known is None else known.note

    def draw(self, crystals: Mapping[int, Crystal], seed: int) -> Drawn:
        config = replace(self.config, seed=seed)
        prompts: dict[int, Prompt] = {}
        refused: dict[int, str] = {}
        for row, crystal in crystals.items():
            try:
                prompts[row] = self._prompt(crystal)
            except PromptError as err:
                refused[row] = f"prompt: {err}"
        try:
            records = self.generator.generate_from(list(prompts.values()), config) if prompts else []
        except PromptError:  # of one of them: find it
            for row, prompt in list(prompts.items()):
                try:
                    self.generator.form.begin(prompt, self.generator.form.best_constraints)
                except PromptError as err:
                    refused[row] = f"prompt: {err}"
                    del prompts[row]
            records = self.generator.generate_from(list(prompts.values()), config) if prompts else []
        n_known = 0
        if config.novel:
            records, n_known = self._novel(records)
        return Drawn(records, list(prompts), refused, n_known)

    def _novel(self, records: Sequence[CIFRecord]) -> tuple[list[CIFRecord], int]:
        """`num` of each prompt that are no known crystals, and how many of the drawn ones are known."""
        missing = CIFRecord("", "", rejected_by="known", reason="only known crystals were drawn in its place")
        found: list[CIFRecord] = []
        n_known = 0
        for _, part in itertools.groupby(records, lambda record: record.id.rpartition("-")[0]):  # a prompt's
            drawn = list(part)
            new = [record for record in drawn if record.rejected_by != "known"]
            n_known += len(drawn) - len(new)
            found += [*new, *[missing] * self.config.num][: self.config.num]
        return found, n_known

    def _prompt(self, crystal: Crystal) -> Prompt:
        """The reduced formula, and unless `formula_only` how many of it the given cell holds."""
        if self.formula_only:
            return self.generator.form.prompt(crystal.reduced_formula)
        if self.generator.tokenizer.vocabulary.kind != "crystallm_v1":
            return benchmark_prompt(crystal)
        # CrystaLLM's prompt is the formula of a cell, and its benchmarks give that of the given one.
        return self.generator.form.prompt("".join(f"{symbol}{n}" for symbol, n in crystal.composition.items()))

    def nats(self, judged: Sequence[Judged]) -> dict[str, float | int]:
        """Mean negative log-likelihood of the true structures, whole and after the formula, under the grammar softmax.

        Nothing for models that do not write the canonical text.
        """
        tokenizer, model = self.generator.tokenizer, self.generator.model
        if tokenizer.vocabulary.kind != "lexemes":
            return {}
        keyword = tokenizer.id("\n_crystallm_primitive_formula_units ")
        sequences = [np.array(tokenizer.encode(one.reference_text)) for one in judged if one.reference_text]
        sequences = sorted((ids for ids in sequences if len(ids) <= model.config.block_size), key=len)
        whole, given = [], []
        for start in range(0, len(sequences), 64):
            part = sequences[start : start + 64]
            _, tokens = model.log_likelihood(part)
            for ids, row in zip(part, tokens.cpu().numpy(), strict=True):
                whole.append(-row.sum())
                given.append(-row[int(np.argmax(ids == keyword)) + 1 :].sum())
        if not whole:
            return {"n_scored": 0}
        return {
            "n_scored": len(whole),
            "nats_per_structure": float(np.mean(whole)),
            "nats_given_formula": float(np.mean(given)),
            "mean_tokens": float(np.mean([len(ids) for ids in sequences])),
        }


@dataclass(frozen=True, eq=False)
class DiffusionSampler:
    """Atoms and cell from noise; of a row's cell the model is told the species and how many there are of each."""

    model: CrystalDiffusionModel
    info: dict[str, Any]  # as load_refiner gives it
    num: int
    num_steps: int | None = None  # None: all of the model's schedule
    sampler: Denoising = "ancestral"
    default_select: tuple[str, ...] = ()

    @property
    def model_hash(self) -> str:
        return str(self.info["model_hash"])

    @property
    def device(self) -> str:
        return str(next(self.model.parameters()).device)

    @property
    def known(self) -> str | None:
        return None

    def draw(self, crystals: Mapping[int, Crystal], seed: int) -> Drawn:
        species = [np.sort(one.atomic_numbers).tolist() for one in crystals.values() for _ in range(self.num)]
        about = {"generator": "diffusion", "model_hash": self.model_hash, "seed": seed, "sampler": self.sampler}
        about["num_steps"] = self.num_steps or self.model.config.timesteps
        records: list[CIFRecord] = []
        for places in at_once(map(len, species)):
            part = [species[place] for place in places]
            drawn = self.model.sample(
                len(part), None, part, num_steps=self.num_steps, sampler=self.sampler, seed=seed + places.start
            )
            for index, crystal in zip(places, drawn, strict=True):
                provenance = about | {"index": index}
                records.append(CIFRecord(f"gen-{index:06d}", write_cif(crystal, provenance), provenance=provenance))
        return Drawn(records, list(crystals), {})

    def nats(self, judged: Sequence[Judged]) -> dict[str, float | int]:
        """A diffusion model gives none."""
        return {}


class TrainingCrystals:
    """The control that has learned by heart and generates nothing: training crystals of the row's formula, at random.

    Those with as many atoms in the primitive cell as the given cell holds; where there are none, with the most that
    divide this number.
    """

    default_select: tuple[str, ...] = ()
    device = "cpu"
    known = None

    def __init__(self, folder: str | Path, num: int):
        """`folder`: of bin/prepare_data.py."""
        import pyarrow.parquet as pq

        path = Path(folder) / RECORDS_FILE
        columns = ["id", "text", "reduced_formula", "n_atoms"]
        rows = pq.read_table(path, columns=columns, filters=[("split", "=", "train")]).to_pylist()
        self.num = num
        self.model_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        self._of: dict[str, dict[int, list[tuple[str, str]]]] = {}  # id and text by formula and number of atoms
        for row in rows:
            same = self._of.setdefault(row["reduced_formula"], {})
            same.setdefault(row["n_atoms"], []).append((row["id"], row["text"]))

    def draw(self, crystals: Mapping[int, Crystal], seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        records: list[CIFRecord] = []
        refused: dict[int, str] = {}
        for row, crystal in crystals.items():
            same = self._of.get(crystal.reduced_formula, {})
            sizes = [n for n in same if crystal.n_atoms % n == 0]
            if not sizes:
                refused[row] = (
                    f"no training crystal of {crystal.reduced_formula} with {crystal.n_atoms} atoms or a part"
                )
                continue
            candidates = same[max(sizes)]
            for index in rng.integers(len(candidates), size=self.num).tolist():
                name, text = candidates[index]
                provenance = {"generator": "training crystals", "id": name, "seed": seed}
                cif = write_cif(AsymmetricUnit.from_text(text), provenance)
                records.append(CIFRecord(name, cif, text=text, provenance=provenance))
        return Drawn(records, [row for row in crystals if row not in refused], refused)

    def nats(self, judged: Sequence[Judged]) -> dict[str, float | int]:
        """It gives none."""
        return {}
