"""Crystal structure prediction benchmarks: a composition in, structures out, scored as the published tables are.

    benchmark_csp(CSPConfig("mp20", split="val", data="data/", out="runs/csp-mp20-val"))

Three steps, each in parts that are written when done, so that the same call goes on where it was stopped: sampling in
this process while worker processes check, match and select (judge.py); matches between rows of one formula, for METRe;
scores. Every row is accounted for: what cannot be read, asked or judged counts as a miss and is named in the results.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from crystallm.benchmark.datasets import Reference, load_references
from crystallm.benchmark.judge import Block, BlockMatches, Judged, Task, judge_target, lost, match_block
from crystallm.benchmark.log import TestRun, append_entry, check_first, find_log, git_state
from crystallm.benchmark.run_folder import RunFolder, as_json, digest
from crystallm.benchmark.samplers import DiffusionSampler, RowSampler, TextSampler, TrainingCrystals
from crystallm.benchmark.scores import Samples, log_lines, results_table, score_run, target_columns
from crystallm.parallel import Failure, available_cores, map_processes
from crystallm.refine.checkpoint import is_refiner, load_refiner
from crystallm.refine.diffusion import Sampler
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.known import RECORDS_FILE
from crystallm.sample.prompts import Mode
from crystallm.sample.scorers import Scorer
from crystallm.sample.selection import SELECTIONS
from crystallm.train.distribution import pick_device

if TYPE_CHECKING:
    from crystallm.crystal import Crystal
    from crystallm.records import CIFRecord

TIMEOUT_S = 600.0  # for one target; then it counts as a miss
BLOCK_REFERENCES, BLOCK_PREDICTIONS = 100, 400  # of a block of one formula
PAIRS_PER_PART = 200_000


@dataclass(frozen=True)
class CSPConfig:
    dataset: str  # perov5 | carbon24 | mp20 | mpts52, or a parquet or CSV file with a column `cif`
    out: str  # folder of the run
    split: str | None = None  # val | test | val_tune | val_report
    data: str | None = None  # folder of the named sets
    where: str | None = None  # pandas query for rows, besides
    limit: int | None = None  # the first rows of these
    num: int = 20  # samples for each target
    select: tuple[str, ...] | None = None  # answers selected among them; None: by likelihood and self_consistency
    formula_only: bool = False  # do not tell the number of atoms in the given cell
    constraints: Mode | None = None  # None: the strongest for what the model writes
    restarts: int = 20  # dead ends drawn again before a sample counts as one
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    novel: bool = False  # draw another sample in place of each known crystal
    known: str | None = None  # these crystals; None: those that the model was trained on
    seed: int = 0
    model: str | None = None  # None: the bundled one; prepared data: its training crystals, a control
    max_pairs: int = 5_000_000  # for METRe: of samples and structures of one formula
    targets_at_once: int = 50  # a chunk: what is lost at most when the run is killed
    device: str = "auto"
    batch: int = 256  # sequences at once
    sampler: Sampler | None = None  # of a diffusion model; None: ancestral
    steps: int | None = None  # of a diffusion model; None: all of its schedule
    workers: int | None = None  # processes for checks and matching; None: one a core
    log: str | None = None  # where a run on test rows is written down; None: resources/LOG.md of a checkout
    again: bool = False  # run test rows once more with the same model

    def __post_init__(self) -> None:
        if unknown := [way for way in self.select or () if way not in SELECTIONS]:
            raise ValueError(f"no way to select {unknown[0]!r}; there are {', '.join(SELECTIONS)}")
        if self.targets_at_once < 1:
            raise ValueError(f"targets_at_once must be at least 1, got {self.targets_at_once}")
        if self.known is not None and not self.novel:
            raise ValueError(f"known goes with novel, got known={self.known!r} alone")
        self.generate  # noqa: B018  (its values are checked)

    @property
    def generate(self) -> GenerateConfig:
        return GenerateConfig(
            num=self.num,
            constraints=self.constraints,
            restarts=self.restarts,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            batch=self.batch,
            rules="none",  # the workers check
            novel=self.novel,
            known=self.known,
            until_valid=self.novel,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that figures depend on."""
        free = {"out", "data", "model", "device", "batch", "workers", "log", "again", "known"}
        free |= {name for name in ("sampler", "steps", "novel") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in free}


def make_sampler(config: CSPConfig) -> RowSampler:
    """Of what `config.model` is. ValueError for settings that are of another kind."""
    default = CSPConfig(config.dataset, config.out)
    is_memory = config.model is not None and (Path(config.model) / RECORDS_FILE).is_file()
    is_diffusion = config.model is not None and not is_memory and is_refiner(config.model)
    if not is_diffusion and (config.sampler is not None or config.steps is not None):
        raise ValueError(f"sampler and steps are of diffusion models; {config.model or 'the bundled model'} is none")
    if not (is_memory or is_diffusion):
        return TextSampler(Generator.load(config.model, config.device), config.generate, config.formula_only)
    for name in ("constraints", "temperature", "top_k", "top_p", "formula_only", "novel"):
        if (value := getattr(config, name)) != getattr(default, name):
            raise ValueError(f"{name}={value!r} is of language models; {config.model} is none")
    if odd := [way for way in config.select or () if way != "first"]:
        raise ValueError(f"select={odd[0]!r} needs likelihoods, which {config.model}, no language model, does not give")
    assert config.model is not None
    if is_memory:
        return TrainingCrystals(config.model, config.num)
    model, info = load_refiner(config.model, pick_device(config.device))
    return DiffusionSampler(model, info, config.num, config.steps, config.sampler or "ancestral")


def benchmark_csp(config: CSPConfig) -> dict[str, Any]:
    """What `results.json` of the run's folder then holds.

    Raises OtherRunError where the folder holds another run, LogError for test rows that this model has seen, ValueError
    for settings that the model has no use for.
    """
    run = _Run(config)
    results = run.finished()
    if results is None:
        run.sample_and_judge()
        run.match_polymorphs()
        results = run.score()
    run.write_log(results)
    return results


class _Run:
    def __init__(self, config: CSPConfig) -> None:
        self.sampler = make_sampler(config)
        self.select = self.sampler.default_select if config.select is None else config.select
        self.config = config = replace(config, select=self.select)
        self.scorers = {way: scorer for way in self.select if (scorer := Scorer.of_selection(way, config.device))}
        source = (config.dataset, config.split, config.data, config.where, config.limit, config.workers)
        self.references, self.rows = load_references(*source)
        model_hash = self.sampler.model_hash
        rows_hash = digest([[one.id, hashlib.sha256(one.cif.encode()).hexdigest()] for one in self.references])
        identity: dict[str, Any] = {"settings": config.identity, "model_hash": model_hash, "rows_sha256": rows_hash}
        if config.novel:
            identity["known"] = self.sampler.known
        if self.scorers:  # another predictor selects otherwise: another run
            identity["scorers"] = {way: scorer.model_hash for way, scorer in self.scorers.items()}
        self.commit = git_state()
        self.test_run: TestRun | None = None
        if config.split == "test":
            self.test_run = TestRun(config.dataset, rows_hash, model_hash, digest(identity))
            self.log: Path = find_log(config.log)
            self._refuse_second_test()
        self.folder = RunFolder(config.out, identity)
        self.model_hash = model_hash

    def _refuse_second_test(self) -> None:
        assert self.test_run is not None
        if not (Path(self.config.out) / "config.json").exists():  # else it goes on, or is refused as another run
            check_first(self.test_run, self.log, self.config.again)

    def finished(self) -> dict[str, Any] | None:
        results: dict[str, Any] | None = self.folder.read_json("results.json")
        return results

    @property
    def chunks(self) -> list[range]:
        size = self.config.targets_at_once
        return [range(k, min(k + size, len(self.references))) for k in range(0, len(self.references), size)]

    # ------------------------------------------------------------ samples

    def sample_and_judge(self) -> None:
        """Chunk after chunk; while the workers judge one, the next is drawn."""
        todo = [k for k in range(len(self.chunks)) if not self.folder.has_judged(k)]
        n_workers = available_cores() if self.config.workers is None else self.config.workers
        at_once = max(1, self.config.targets_at_once // (4 * max(1, n_workers)))
        refused: dict[int, str] = {}
        results = map_processes(
            judge_target,
            self._tasks(todo, refused),
            n_workers,
            chunk_size=at_once,
            timeout_s=TIMEOUT_S if n_workers else None,
        )
        n_samples, n_select = self.config.num, len(self.select)
        with tqdm(total=sum(len(self.chunks[k]) for k in todo), desc="targets", unit="") as bar:
            for chunk in todo:
                judged = []
                for row in self.chunks[chunk]:
                    one = next(results)
                    reference = self.references[row]
                    if isinstance(one, Failure):
                        one = lost(reference.id, f"worker: {one}", n_samples, n_select)
                    elif reference.crystal is None:
                        one = lost(reference.id, f"unread row: {reference.reason}", n_samples, n_select, "unread")
                    elif row in refused:
                        one = replace(
                            lost(reference.id, refused[row], n_samples, n_select, "refused"), reference_text=""
                        )
                    judged.append(one)
                    bar.update()
                self.folder.write_judged(chunk, judged)

    def _tasks(self, todo: Sequence[int], refused: dict[int, str]) -> Iterator[Task]:
        for chunk in todo:
            if not self.folder.has_samples(chunk):
                self._sample(chunk)
            records, about = self.folder.read_samples(chunk)
            refused.update({int(row): why for row, why in about["refused"].items()})
            asked = {row: k for k, row in enumerate(about["asked"])}
            for row in self.chunks[chunk]:
                start = asked[row] * self.config.num if row in asked else len(records)
                drawn = tuple(records[start : start + self.config.num])
                one = self.references[row]
                yield Task(one.id, one.cif, one.crystal, drawn, self.select if drawn else ())

    def _sample(self, chunk: int) -> None:
        # Chunks have random numbers of their own: a prompt may stand in several, and must not repeat its samples.
        seed = int.from_bytes(hashlib.blake2b(f"{self.config.seed}/{chunk}".encode(), digest_size=4).digest(), "big")
        wall, cpu = time.perf_counter(), time.process_time()
        drawn = self.sampler.draw(_crystals(self.references, self.chunks[chunk]), seed)
        about = {
            "asked": drawn.asked,
            "refused": drawn.refused,
            "n_known": drawn.n_known,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "commit": self.commit,
            "device": self.sampler.device,
        }
        num = self.config.num
        names = [f"{self.references[row].id}/{k:03d}" for row in drawn.asked for k in range(num)]
        records = [replace(record, id=name) for record, name in zip(drawn.records, names, strict=True)]
        score_cpu_s = {}
        for way, scorer in self.scorers.items():
            cpu = time.process_time()
            records = [
                old if new.rejected_by != old.rejected_by else new  # what has no score takes part all the same
                for old, new in zip(records, scorer.apply(records)[0], strict=True)
            ]
            score_cpu_s[way] = time.process_time() - cpu
        self.folder.write_samples(chunk, records, {**about, "score_cpu_s": score_cpu_s})

    # ------------------------------------------------------------ polymorphs

    def match_polymorphs(self) -> None:
        """Samples of a row against the other rows' structures of its formula, as many kinds of samples as allowed."""
        families = self._families()
        judged = [one for chunk in range(len(self.chunks)) for one in self.folder.read_judged(chunk)]
        compared = self._compared(families, judged)
        plan = list(_parts(families, compared["samples"]))
        cpu_s = 0.0
        errors: list[str] = []
        for number, blocks in enumerate(tqdm(plan, desc="polymorphs", disable=not plan)):
            name = f"cross/{number:04d}"
            if not self.folder.has(f"{name}.json"):
                self._match_part(name, blocks)
            about = self.folder.read_json(f"{name}.json")
            cpu_s, errors = cpu_s + about["cpu_s"], errors + about["errors"]
        about = {"kinds": compared["kinds"], "n_parts": len(plan), "n_pairs": compared["n_pairs"]}
        self.folder.write_json("cross.json", about | {"cpu_s": cpu_s, "errors": errors})

    def _families(self) -> list[list[int]]:
        by_formula = defaultdict(list)
        for row, one in enumerate(self.references):
            if one.crystal is not None:
                by_formula[one.formula].append(row)
        return [rows for rows in by_formula.values() if len(rows) > 1]

    def _compared(self, families: Sequence[Sequence[int]], judged: Sequence[Judged]) -> dict[str, Any]:
        """Which samples of each row: all, or first and selected ones, or first ones, whatever stays in `max_pairs`."""
        rows = [row for family in families for row in family]
        usable = [row for row in rows if not judged[row].lost]
        choices = {
            "all": {row: list(range(self.config.num)) for row in usable},
            "first and selected": {row: sorted({0, *judged[row].selected} - {-1}) for row in usable},
            "first": {row: [0] for row in usable},
        }
        if not self.select:
            del choices["first and selected"]
        size = {row: len(family) - 1 for family in families for row in family}
        for kinds, samples in choices.items():
            n_pairs = sum(len(ks) * size[row] for row, ks in samples.items())
            if n_pairs <= self.config.max_pairs:
                return {"kinds": kinds, "samples": samples, "n_pairs": n_pairs}
        return {"kinds": "none", "samples": {}, "n_pairs": 0}

    def _match_part(self, name: str, blocks: Sequence[tuple[Sequence[int], Sequence[tuple[int, int]]]]) -> None:
        drawn: dict[int, dict[int, Sequence[CIFRecord]]] = {}

        def records_of(row: int) -> Sequence[CIFRecord]:
            chunk = row // self.config.targets_at_once
            if chunk not in drawn:
                records, about = self.folder.read_samples(chunk)
                num = self.config.num
                drawn[chunk] = {one: records[k * num : (k + 1) * num] for k, one in enumerate(about["asked"])}
            return drawn[chunk][row]

        def whole(block: tuple[Sequence[int], Sequence[tuple[int, int]]]) -> Block:
            references, predictions = block
            crystals = [(row, self.references[row].crystal) for row in references]
            return Block(
                tuple((row, crystal) for row, crystal in crystals if crystal is not None),
                tuple((row, k, records_of(row)[k]) for row, k in predictions),
            )

        workers = self.config.workers
        timeout_s = None if workers == 0 else TIMEOUT_S * 6
        found: list[BlockMatches] = []
        errors: list[str] = []
        for result in map_processes(match_block, map(whole, blocks), workers, chunk_size=1, timeout_s=timeout_s):
            if isinstance(result, Failure):
                errors.append(f"block {result.index} of {name}, its matches are missing: {result}")
            else:
                found.append(result)
                errors += result.errors
        matches = [match for one in found for match in one.matches]
        columns = ("reference", "row", "sample", "rms")
        self.folder.write_table(f"{name}.parquet", {c: [m[i] for m in matches] for i, c in enumerate(columns)})
        self.folder.write_json(f"{name}.json", {"cpu_s": sum(one.cpu_s for one in found), "errors": errors})

    # ------------------------------------------------------------ scores

    def score(self) -> dict[str, Any]:
        judged = [one for chunk in range(len(self.chunks)) for one in self.folder.read_judged(chunk)]
        abouts = [self.folder.read_json(f"samples/{chunk:04d}.json") for chunk in range(len(self.chunks))]
        cross = self.folder.read_json("cross.json")
        tables = [self.folder.read_table(f"cross/{k:04d}.parquet") for k in range(cross["n_parts"])]
        matches = {c: np.concatenate([np.array(t[c]) for t in tables]) for c in tables[0]} if tables else None
        samples = Samples(self.references, judged, self.config.num, self.select, matches, cross["kinds"])
        results = as_json(
            {
                "dataset": self.config.dataset,
                "split": self.config.split,
                **asdict(self.rows),
                "prompt": "formula" if self.config.formula_only else "formula and number of atoms in the given cell",
                **({"known": self.sampler.known} if self.config.novel else {}),
                **score_run(samples, abouts, cross),
                **self.sampler.nats(judged),
                "model_hash": self.model_hash,
                "config_hash": self.folder.config_hash,
                "commits": sorted({about["commit"] for about in abouts}),
                "devices": sorted({about["device"] for about in abouts}),
                "settings": self.config.identity,
            }
        )
        self.folder.write_table("targets.parquet", target_columns(samples))
        self.folder.write_text("results.md", results_table(results))
        self.folder.write_json("results.json", results)
        return results

    def write_log(self, results: dict[str, Any]) -> None:
        if self.test_run is None or self.folder.has("log_entry.md"):
            return
        title = f"Test rows of {self.config.dataset}: {self.rows.n_rows} ({self.rows.rows})"
        self.folder.write_text("log_entry.md", append_entry(self.test_run, self.log, title, log_lines(results)))


def _crystals(references: Sequence[Reference], rows: Sequence[int]) -> dict[int, Crystal]:
    return {row: crystal for row in rows if (crystal := references[row].crystal) is not None}


def _parts(
    families: Sequence[Sequence[int]], samples: dict[int, list[int]]
) -> Iterator[list[tuple[Sequence[int], Sequence[tuple[int, int]]]]]:
    """Blocks of (references, predictions), some hundred thousand pairs of them at a time."""
    part: list[tuple[Sequence[int], Sequence[tuple[int, int]]]] = []
    pairs = 0
    for family in families:
        predictions = [(row, k) for row in family for k in samples.get(row, ())]
        for first in range(0, len(family), BLOCK_REFERENCES):
            references = family[first : first + BLOCK_REFERENCES]
            for start in range(0, len(predictions), BLOCK_PREDICTIONS):
                part.append((references, predictions[start : start + BLOCK_PREDICTIONS]))
                pairs += len(part[-1][0]) * len(part[-1][1])
                if pairs >= PAIRS_PER_PART:
                    yield part
                    part, pairs = [], 0
    if part:
        yield part
