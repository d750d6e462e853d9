"""The rows of the speed table: what each does, the plain baseline of the same work, and what it asks of the machine.

A row takes items, most of them canonical texts, and gives a result for each. Baselines take the first few of the same
items, since they are slow, and their results are compared with ours: a baseline that does other work is no baseline.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError
from crystallm.canonical import canonicalize
from crystallm.checks.filter import FilterConfig, run_filter
from crystallm.cif import CIFError, parse_cif, write_cif
from crystallm.crystal import Crystal
from crystallm.data.readers import count_rows, read_sources
from crystallm.metrics.csp import Target, rms_distances
from crystallm.metrics.evaluate import EvaluateConfig, evaluate_records
from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import FORCED, token_spec
from crystallm.parallel import available_cores
from crystallm.records import CIFRecord, write_records
from crystallm.refine.records import RefineConfig, refine_units
from crystallm.refine.units import UnitCrystal
from crystallm.resources import resource_path
from crystallm.sample.engine import Engine, Job
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.logits import Draw
from crystallm.sample.prompts import Prompt, begin, benchmark_prompt
from crystallm.sample.refined import load
from crystallm.speed import plain
from crystallm.train.ahead import made_ahead
from crystallm.train.checkpoint import write_checkpoint
from crystallm.train.distribution import Dtype, pick_dtype, release_memory, start_processes
from crystallm.train.loader import DataConfig, ShardLoader, TokenShards
from crystallm.train.trainer import TrainConfig, Trainer
from tokenizer import CIFTokenizer

DEMO = "resources/demo/demo.parquet"
SHAPES = {  # n_layer, n_head, n_embd: million parameters in blocks
    "3m": (4, 4, 256),
    "25m": (8, 8, 512),
    "100m": (14, 12, 768),
}


@dataclass(frozen=True)
class SpeedConfig:
    path: str | None = None  # corpus, as bin/prepare_data.py reads it; None: the demo corpus
    num: int = 300  # structures
    rows: tuple[str, ...] = ()  # (): all
    model: str | None = None  # checkpoint; None: the bundled model
    model_shape: str | None = None  # a model of random weights instead: 3m, 25m, 100m or layers,heads,width
    device: str = "cpu"
    dtype: Dtype = "auto"  # of training and sampling; auto samples in float32 on a CPU
    threads: int = 1
    seed: int = 0
    batch: int = 256  # sequences sampled at once
    workers: int | None = None  # processes of the row `draw`; None: one a core
    draws: int = 1  # structures that this row draws for each of the corpus
    checks: str = "default"  # that this row makes: default, crystallm, cdvae or none
    batch_tokens: int = 8192  # of a training batch
    steps: int = 20  # of training
    compile: bool = False  # the blocks, in training
    rounds: int = 3  # ours and the baseline, in turn
    plain_num: int | None = None  # structures of each baseline; None: as many as fit some seconds

    def __post_init__(self) -> None:
        for name in ("num", "threads", "batch", "draws", "batch_tokens", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if unknown := [row for row in self.rows if row not in ROWS]:
            raise ValueError(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
        if self.model_shape is not None:
            parse_shape(self.model_shape)


def parse_shape(text: str) -> GPTConfig:
    try:
        n_layer, n_head, n_embd = SHAPES[text] if text in SHAPES else map(int, text.split(","))
    except ValueError:
        raise ValueError(f"a model's shape is {', '.join(SHAPES)} or layers,heads,width, got {text!r}") from None
    return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)


@dataclass(frozen=True)
class Corpus:
    cifs: tuple[str, ...]  # as given
    texts: tuple[str, ...]  # canonical
    n_left_out: int  # rows without a canonical text, before as many as wanted were found


def read_corpus(path: str | None, num: int) -> Corpus:
    """Spread over the whole corpus where its length is known (parquet), else its first."""
    cifs: list[str] = []
    texts: list[str] = []
    n_left_out = 0
    source = [resource_path(DEMO) if path is None else path]
    step = max(1, (count_rows(source) or 0) // num)
    for record in itertools.islice(read_sources(source), 0, None, step):
        try:
            if record.rejected_by is not None:
                raise CanonicalError(record.rejected_by, record.reason)
            text = canonicalize(parse_cif(record.cif or record.text)[0]).to_text()
        except (CIFError, CanonicalError):
            n_left_out += 1
            continue
        cifs.append(record.cif or record.text)
        texts.append(text)
        if len(texts) == num:
            break
    if not texts:
        raise ValueError(f"{path}: none of its {n_left_out} rows has a canonical text")
    return Corpus(tuple(cifs), tuple(texts), n_left_out)


@dataclass(frozen=True)
class Demand:
    """Of one structure: operations on numbers of `dtype` where that is what the work consists of, else bytes moved."""

    operations: float = 0.0
    bytes: float = 0.0


class Row:
    name = ""
    plain_num = 30  # structures of the baseline, some seconds of it
    repeat = 1  # times each item is worked on, where once is too fast to be timed
    warm_up = 8  # items that are worked on before the clock starts: tables, caches, kernels
    on_device = False  # runs on a GPU where asked to
    one_go = False  # all items at once: a batch is part of the work
    comparable = True  # the baseline gives the same results
    by_clock = False  # several processes: rates by the clock

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        self.corpus, self.config = corpus, config
        self.items: Sequence[Any] = corpus.texts
        self.dtype = torch.float32
        self.facts: dict[str, Any] = {}  # further figures of this row

    def ours(self, items: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError

    def plain(self, items: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError

    def same(self, item: Any, ours: Any, plain: Any) -> bool:
        return bool(ours == plain)

    def demand(self, item: Any, result: Any) -> Demand:
        return Demand()

    def n_structures(self, result: Any) -> float:
        return 1.0

    def model_config(self) -> GPTConfig:
        return GPTConfig() if self.config.model_shape is None else parse_shape(self.config.model_shape)


# ---------------------------------------------------------------- text


class Encode(Row):
    name, plain_num, repeat = "encode", 100, 20

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.tokenizer = CIFTokenizer()
        self.greedy = plain.GreedyEncoder(self.tokenizer.vocabulary)

    def ours(self, items: Sequence[str]) -> Sequence[Any]:
        return self.tokenizer.encode_batch(items)

    def plain(self, items: Sequence[str]) -> Sequence[Any]:
        return [self.greedy.encode(text) for text in items]

    def same(self, item: str, ours: Any, plain: Any) -> bool:
        return list(ours) == plain

    def demand(self, item: str, result: Any) -> Demand:
        return Demand(bytes=len(item) + 2 * len(result))


class Prepare(Row):
    """CIF → canonical text, beside pymatgen's symmetrised CIF."""

    name = "prepare"

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.items = corpus.cifs

    def ours(self, items: Sequence[str]) -> Sequence[str]:
        return [canonicalize(parse_cif(cif)[0]).to_text() for cif in items]

    def plain(self, items: Sequence[str]) -> Sequence[str]:
        return [plain.symmetrised_cif(cif) for cif in items]

    def same(self, item: str, ours: str, plain: str) -> bool:
        return _match(AsymmetricUnit.from_text(ours).to_crystal(), parse_cif(plain)[0])

    def demand(self, item: str, result: str) -> Demand:
        return Demand(bytes=len(item) + len(result))


class Write(Row):
    """Canonical text → full CIF on disk, a file each."""

    name = "write"

    def ours(self, items: Sequence[str]) -> Sequence[str]:
        with tempfile.TemporaryDirectory() as folder:
            write_records(Path(folder) / "cifs", self._records(items))
            return [path.read_text() for path in sorted((Path(folder) / "cifs").glob("*.cif"))]

    @staticmethod
    def _records(items: Iterable[str]) -> Iterable[CIFRecord]:
        for k, text in enumerate(items):
            yield CIFRecord(f"gen-{k:06d}", write_cif(AsymmetricUnit.from_text(text)), text=text)

    def plain(self, items: Sequence[str]) -> Sequence[str]:
        structures = [CIFRecord("", "", text=text).structure for text in items]
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{k:06d}.cif" for k in range(len(items))]
            for structure, path in zip(structures, paths, strict=True):
                plain.write_with_pymatgen(structure, path)
            return [path.read_text() for path in paths]

    def same(self, item: str, ours: str, plain: str) -> bool:
        return _match(parse_cif(ours)[0], parse_cif(plain)[0])

    def demand(self, item: str, result: str) -> Demand:
        return Demand(bytes=len(item) + len(result))


# ---------------------------------------------------------------- checks


class _Checked(Row):
    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.items = [write_cif(AsymmetricUnit.from_text(text)) for text in corpus.texts]

    @staticmethod
    def records(items: Iterable[str]) -> list[CIFRecord]:
        return [CIFRecord(f"gen-{k:06d}", cif) for k, cif in enumerate(items)]

    def demand(self, item: str, result: bool) -> Demand:
        return Demand(bytes=len(item))


class Filter(_Checked):
    """The default rules on full CIFs as sampling writes them."""

    name = "filter"

    def ours(self, items: Sequence[str]) -> Sequence[bool]:
        return [record.rejected_by is None for record in run_filter(self.records(items), FilterConfig())[0]]

    def plain(self, items: Sequence[str]) -> Sequence[bool]:
        return [plain.is_valid_default(cif) for cif in items]


class Evaluate(_Checked):
    """CrystaLLM's rules, all of them, and the features of bin/evaluate_cifs.py."""

    name, plain_num = "evaluate", 21

    def ours(self, items: Sequence[str]) -> Sequence[bool]:
        config = EvaluateConfig(("-",), rules="crystallm", compare=False, workers=0)
        return [row.rejected_by is None for row in evaluate_records(self.records(items), None, config).generated.rows]

    def plain(self, items: Sequence[str]) -> Sequence[bool]:
        return [self._verdict(cif) for cif in items]

    @staticmethod
    def _verdict(cif: str) -> bool:
        try:
            return plain.is_valid_crystallm(cif)
        except Exception:  # as published: what raises, a radius that is not known for one, is not valid
            return False


class Match(Row):
    """A prediction, the crystal with its atoms moved by some 0.1 Å and its edges by some percent, against it."""

    name, plain_num = "match", 60

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.items = [
            (write_cif(shaken(crystal, k)), cif, crystal) for k, (cif, crystal) in enumerate(self._crystals())
        ]

    def _crystals(self) -> Iterable[tuple[str, Crystal]]:
        return ((cif, parse_cif(cif)[0]) for cif in self.corpus.cifs)

    def ours(self, items: Sequence[tuple[str, str, Crystal]]) -> Sequence[float]:
        targets = [Target(str(k), crystal, (parse_cif(cif)[0],)) for k, (cif, _, crystal) in enumerate(items)]
        return rms_distances(targets)[:, 0].tolist()

    def plain(self, items: Sequence[tuple[str, str, Crystal]]) -> Sequence[float | None]:
        return [plain.rms_distance(predicted, reference) for predicted, reference, _ in items]

    def same(self, item: Any, ours: float, plain: float | None) -> bool:
        return bool(np.isnan(ours)) if plain is None else abs(ours - plain) < 1e-4

    def demand(self, item: tuple[str, str, Crystal], result: float) -> Demand:
        return Demand(bytes=len(item[0]))


def shaken(crystal: Crystal, seed: int) -> Crystal:
    rng = np.random.default_rng(seed)
    shift = 0.1 * rng.standard_normal((crystal.n_atoms, 3)) @ np.linalg.inv(crystal.lattice)
    return Crystal(crystal.lattice * rng.normal(1, 0.02, (3, 1)), crystal.frac_coords + shift, crystal.atomic_numbers)


@functools.cache
def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


def _match(first: Crystal, second: Crystal) -> bool:
    from crystallm.interop import to_structure

    return bool(_matcher().fit(to_structure(first), to_structure(second)))


# ---------------------------------------------------------------- the model


def forward_operations(config: GPTConfig, n_parameters: int, n_tokens: int, n_logits: int) -> float:
    """2 for each parameter of the blocks and each token, attention over all earlier tokens, and the logits."""
    attention = 2 * config.n_layer * config.n_embd * n_tokens * (n_tokens + 1)  # q·k and weights·v, a triangle each
    return 2.0 * n_parameters * n_tokens + attention + 2.0 * config.n_embd * n_logits


def loaded_generator(config: SpeedConfig, folder: str) -> Generator:
    """The model named, or one of random weights and the shape asked for, kept in the folder."""
    if config.model_shape is None:
        return Generator.load(config.model, config.device)
    torch.manual_seed(config.seed)
    tokenizer = CIFTokenizer()
    model = GPT(parse_shape(config.model_shape), token_spec(tokenizer))
    checkpoint = Path(folder) / "model"
    write_checkpoint(checkpoint, {"model": dict(model.named_parameters())}, model_info(model.config, tokenizer))
    return Generator.load(checkpoint, config.device)


class Sample(Row):
    """Formula and number of atoms → canonical text, all constraints, temperature 1."""

    name, plain_num, on_device, one_go = "sample", 8, True, True
    restarts = 20

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.folder = tempfile.TemporaryDirectory()
        self.generator = loaded_generator(config, self.folder.name)
        if config.device != "cpu" or config.dtype != "auto":
            self.dtype = pick_dtype(config.dtype, torch.device(config.device))
        self.model, rules = self.generator.model, self.generator.rules
        grammar = rules.grammar
        self.slot_tokens = [*grammar.slot_tokens, np.arange(self.generator.tokenizer.vocab_size)]
        self.engine = Engine(self.model, self.slot_tokens, config.batch, dtype=self.dtype)
        prompts = [benchmark_prompt(parse_cif(cif)[0]) for cif in corpus.cifs]
        self.items = [Job(k, *begin(prompt, rules), self.restarts) for k, prompt in enumerate(prompts)]
        self.facts = {"million_parameters_in_blocks": round(self.model.n_block_parameters / 1e6, 2)}

    def model_config(self) -> GPTConfig:
        return self.model.config

    def ours(self, items: Sequence[Job]) -> Sequence[list[int] | None]:
        samples = {sample.index: sample for sample in self.engine.run(items, self.config.seed, Draw())}
        ordered = [samples[job.index] for job in items]
        for sample in ordered:
            self.generator.tokenizer.decode(sample.ids)
        return [sample.ids if sample.stopped == "end" else None for sample in ordered]

    def plain(self, items: Sequence[Job]) -> Sequence[list[int] | None]:
        model, slots, seed = self.model, self.slot_tokens, self.config.seed
        return [
            plain.sample_uncached(model, slots, job.prompt, job.new_constraint, seed, job.index, job.restarts)
            for job in items
        ]

    def demand(self, item: Job, result: list[int] | None) -> Demand:
        if result is None:
            return Demand()
        slots = self.model.spec.slots(np.array(result))
        n_logits = sum(len(self.slot_tokens[slot]) for slot in slots.tolist() if slot != FORCED)
        return Demand(forward_operations(self.model.config, self.model.n_block_parameters, len(result), n_logits))


class DrawAndCheck(Row):
    """Formula and number of atoms → checked records with full CIFs, as bin/sample.py --workers makes them, beside one
    process. `once_started_per_second` leaves out the time in which the processes load torch and the model.
    """

    name, plain_num, warm_up, on_device, one_go, by_clock = "draw", 32, 8, True, True, True

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.folder = tempfile.TemporaryDirectory()
        self.generator = loaded_generator(config, self.folder.name)
        prompts = [benchmark_prompt(parse_cif(cif)[0]) for cif in corpus.cifs]
        self.items = [prompt for prompt in prompts for _ in range(config.draws)]
        self.workers = available_cores() if config.workers is None else config.workers
        dtype = pick_dtype(config.dtype, torch.device(config.device)) if config.dtype != "auto" else torch.float32
        self.dtype = dtype
        self.settings = GenerateConfig(
            num=1,
            seed=config.seed,
            batch=config.batch,
            dtype=str(dtype).removeprefix("torch."),
            rules=config.checks,
            device=config.device,
        )

    def model_config(self) -> GPTConfig:
        return self.generator.model.config

    def ours(self, items: Sequence[Prompt]) -> Sequence[CIFRecord]:
        start, n_first, records = time.perf_counter(), 0, []
        settings = replace(self.settings, workers=self.workers)
        for record in self.generator.stream_from(items, settings):
            records.append(record)
            if len(records) == min(len(items) // 2, 2 * self.workers * self.config.batch):
                start, n_first = time.perf_counter(), len(records)
        self.facts |= {
            "workers": self.workers,
            "once_started_per_second": (len(items) - n_first) / (time.perf_counter() - start),
            "valid": sum(record.rejected_by is None for record in records) / len(records),
        }
        return records

    def plain(self, items: Sequence[Prompt]) -> Sequence[CIFRecord]:
        return self.generator.generate_from(items, self.settings)

    def same(self, item: Prompt, ours: CIFRecord, plain: CIFRecord) -> bool:
        return (ours.text, ours.rejected_by) == (plain.text, plain.rejected_by)

    def demand(self, item: Prompt, result: CIFRecord) -> Demand:
        return Demand(bytes=len(result.cif))


class Refine(Row):
    """Canonical texts → primitive cells through the bundled refiner, as bin/refine.py sets it."""

    name, plain_num, on_device, one_go = "refine", 20, True, True

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.model, _ = load(None, config.device)
        self.settings = RefineConfig()
        self.items = [UnitCrystal.of(AsymmetricUnit.from_text(text)) for text in corpus.texts]

    def ours(self, items: Sequence[UnitCrystal]) -> Sequence[Crystal]:
        return refine_units(items, self.model, self.settings)

    def plain(self, items: Sequence[UnitCrystal]) -> Sequence[Crystal]:
        return [plain.refine_one(self.model, item, self.settings) for item in items]

    def same(self, item: UnitCrystal, ours: Crystal, plain: Crystal) -> bool:
        shift = ours.frac_coords - plain.frac_coords
        far = np.abs((shift - np.rint(shift)) @ plain.lattice).max()  # Å
        return bool(far < 1e-3 and np.abs(ours.lattice - plain.lattice).max() < 1e-3)

    def demand(self, item: UnitCrystal, result: Crystal) -> Demand:
        """Products of matrices: neighbours, as many as the density has, with 16 radial functions and 9 harmonics."""
        config, n = self.model.config, result.n_atoms
        n_pairs = n**2 / result.volume_ang3 * 4 / 3 * np.pi * config.cutoff_ang**3
        layer = n_pairs * 2 * (16 + 9) * config.hidden_dim + n * 14 * config.hidden_dim**2
        return Demand(float(config.num_layers * self.settings.num_steps * layer))


class _Steps(Row):
    """An item is a step; its result, how many structures and tokens it saw."""

    comparable = False  # batches of other structures; the tests compare the losses

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        self.tokenizer = CIFTokenizer()
        self.spec = token_spec(self.tokenizer)
        self.sequences = self.tokenizer.encode_batch(corpus.texts)
        # Four batches at least: the corpus again and again, where it is smaller.
        self.sequences *= -(-4 * config.batch_tokens // sum(map(len, self.sequences)))
        self.folder = tempfile.TemporaryDirectory()
        write_shards(Path(self.folder.name), self.tokenizer, self.sequences)
        self.block_size = max(GPTConfig.block_size, *map(len, self.sequences))
        self.loader = ShardLoader(
            TokenShards(self.folder.name, "train"),
            partial(make_batch, spec=self.spec),
            DataConfig(self.folder.name, batch_tokens=config.batch_tokens),
            self.block_size,
            config.seed,
        )
        self.items = range(config.steps)
        self.facts = {"tokens_per_structure": round(float(np.mean([len(ids) for ids in self.sequences])), 1)}

    def n_structures(self, result: tuple[float, float]) -> float:
        return result[0]


class Train(_Steps):
    """Steps of training as bin/train.py takes them, beside float32 and a softmax over the whole vocabulary."""

    name, plain_num, warm_up, on_device, one_go = "train", 4, 3, True, True

    def __init__(self, corpus: Corpus, config: SpeedConfig):
        super().__init__(corpus, config)
        processes = start_processes(config.device, config.threads)  # type: ignore[arg-type]
        self.dtype = pick_dtype(config.dtype, processes.device)
        shape = replace(self.model_config(), block_size=self.block_size)
        torch.manual_seed(config.seed)
        self.model, self.plain_model = (GPT(shape, self.spec).to(processes.device) for _ in range(2))
        train = TrainConfig(dtype=config.dtype, compile=config.compile, optimizer="muon")
        batches = made_ahead(self.loader, processes.device)
        self.trainer = Trainer(self.model, batches, lambda: iter(()), train, self.folder.name, processes)
        self.optimizer = torch.optim.AdamW(self.plain_model.parameters(), lr=1e-3)
        self.facts["million_parameters_in_blocks"] = round(self.model.n_block_parameters / 1e6, 2)

    def ours(self, items: Sequence[int]) -> Sequence[tuple[float, float]]:
        counts = [self.trainer.train_step(1e-3)[1] for _ in items]
        release_memory()  # as the loop of training does every log_every steps
        if self.model.cos.is_cuda:
            self.facts["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        return [tuple(count[:2].tolist()) for count in counts]

    def plain(self, items: Sequence[int]) -> Sequence[tuple[float, float]]:
        """32 structures a step, in random order."""
        rng, done, size, device = np.random.default_rng(self.config.seed), [], 32, self.model.cos.device
        self.plain_model.train()
        for _ in items:
            chosen = [self.sequences[k] for k in rng.integers(len(self.sequences), size=size)]
            ids, targets = plain.padded_batch(chosen, self.tokenizer.pad_id)
            plain.train_step(self.plain_model, self.optimizer, ids.to(device), targets.to(device))
            done.append((float(size), float(sum(map(len, chosen)))))
        return done

    @functools.cached_property
    def _operations_per_token(self) -> float:
        """Forward and twice that backward, averaged over the corpus."""
        spec, total = self.model.spec, 0.0
        sizes = [len(spec.group_tokens[group]) for group in spec.slot_group]
        for ids in self.sequences:
            slots = spec.slots(ids.astype(np.int64))
            n_logits = sum(sizes[slot] for slot in slots.tolist() if slot != FORCED)
            total += forward_operations(self.model.config, self.model.n_block_parameters, len(ids), n_logits)
        return 3 * total / sum(map(len, self.sequences))

    def demand(self, item: int, result: tuple[float, float]) -> Demand:
        return Demand(self._operations_per_token * result[1])


class Loader(_Steps):
    """Batches alone, as the train row takes them, beside padding in Python. Its share of a step: `share_of_a_step`."""

    name, plain_num = "loader", 5

    def ours(self, items: Sequence[int]) -> Sequence[tuple[float, float]]:
        return [(float(batch.n_structures), float(batch.n_tokens)) for batch in self.loader.take(len(items))]

    def plain(self, items: Sequence[int]) -> Sequence[tuple[float, float]]:
        done = []
        for step in items:
            chosen = [self.sequences[(k + 100 * step) % len(self.sequences)] for k in range(100)]
            plain.padded_batch(chosen, self.tokenizer.pad_id)
            done.append((float(len(chosen)), float(sum(map(len, chosen)))))
        return done

    def demand(self, item: int, result: tuple[float, float]) -> Demand:
        return Demand(bytes=2 * result[1] + 3 * 8 * result[1])  # shards; ids, positions and targets


def write_shards(folder: Path, tokenizer: CIFTokenizer, sequences: Sequence[np.ndarray]) -> None:
    from crystallm.data.shards import ShardWriter, write_meta

    with ShardWriter(folder, "train") as writer:
        for k, ids in enumerate(sequences):
            writer.add(f"row-{k}", ids)
        counts = {"train": writer.counts()}
    write_meta(folder, {"vocabulary": tokenizer.name, "vocabulary_hash": tokenizer.hash, "counts": counts})


ROWS: dict[str, type[Row]] = {
    row.name: row
    for row in (Encode, Prepare, Loader, Train, Sample, DrawAndCheck, Refine, Write, Filter, Evaluate, Match)
}
