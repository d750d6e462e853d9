"""From a prompt to checked records:  generate("NaCl", num=8, seed=0)

Draws, writes full CIFs, runs the checks, marks duplicates. Nothing is dropped: what is not a crystal comes back with
the check that rejected it and the reason.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystallm.hub import BUNDLED, resolve_checkpoint
from crystallm.sample.engine import Engine, Job, Sample
from crystallm.sample.formulas import PromptError
from crystallm.sample.known import known_crystals
from crystallm.sample.logits import Draw
from crystallm.sample.prompts import Mode, Prompt, placed_prompts
from crystallm.sample.queue import Earlier, Queue, Series, Ticket
from crystallm.sample.rules import Rules, rules_of
from crystallm.sample.steering import Steering, add_lines, property_lines, read_steering
from crystallm.sample.text_forms import Begun, text_form
from crystallm.version import __version__

if TYPE_CHECKING:
    from crystallm.model.gpt import GPT
    from crystallm.records import CIFRecord
    from tokenizer import CIFTokenizer

SAMPLE_SCORES = ("log_likelihood_nats", "log_likelihood_per_token", "log_mask_mass_nats")  # of every record
DRAWS_PER_VALID = 20  # with until_valid and no max_draws
COMMAND_SETTINGS = ("keep_rejected", "out", "overwrite")  # what report.run reads, and nobody else
CACHE_BYTES = 3 * 2**30  # 64 sequences of the larger released CrystaLLM model take 34 GB


@dataclass(frozen=True)
class GenerateConfig:
    prompt: str | tuple[str, ...] | None = None  # formula, chemical system, CIF prefix, a file of them, or nothing
    space_group: str | None = None  # symbol in any spelling, or number
    formula_units: int | None = None  # in the primitive cell
    properties: Mapping[str, float] | None = None  # {"band_gap_ev": 1.5}; the unit may be left out of the name
    cell: Mapping[str, float] | None = None  # {"a": 4.0}: a, b, c in Å, alpha, beta, gamma in °; conventional
    prototype: str | None = None  # a name of sample/prototypes.py
    guidance: float = 1.0  # above 1: properties are followed more closely than was learned, at twice the cost
    num: int = 8  # samples for each prompt
    temperature: float = 1.0  # 0: always the most likely token
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None  # None: a fresh one
    constraints: Mode | None = None  # None: the strongest there are for what the model writes
    min_distance_ang: float | None = None  # between any two atoms; None: by their covalent radii, as the checks do
    restarts: int = 20  # a sample that no token can follow is drawn again, up to so many times
    until_valid: bool = False  # draw until `num` are valid
    max_draws: int | None = None  # for each prompt then; None: 20 for each that is wanted
    unique: bool = False  # reject what matches an earlier one, of any prompt
    novel: bool = False  # reject what is known
    # The known crystals: known.npz, prepared data, or a corpus; None: those that the model was trained on, by the index
    # beside it or from its training data.
    known: str | None = None
    rules: str = "default"  # checks: default | crystallm | cdvae | none
    refine: bool = False  # the diffusion model goes over what was drawn
    refiner: str | None = None  # its checkpoint; None: the bundled one
    model: str | None = None  # checkpoint folder, or a CrystaLLM ckpt.pt; None: the bundled one
    device: str = "auto"  # auto | cpu | cuda | mps
    dtype: str = "float32"  # of the blocks' matrix products, float32 or bfloat16; the draws differ
    batch: int = 256  # sequences at once, fewer where their cache would not fit in memory
    workers: int | None = 0  # processes that draw and check, each with a model of its own; None: one a core
    keep_rejected: bool = False  # write them too
    out: str | None = None  # folder, .tar or .parquet
    overwrite: bool = False  # replace what an earlier run wrote there

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.max_draws is not None and self.max_draws < self.num:
            raise ValueError(f"max_draws must be at least num (={self.num}), got {self.max_draws}")
        if self.max_draws is not None and not self.until_valid:
            raise ValueError(f"max_draws goes with until_valid, got max_draws={self.max_draws} alone")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.min_distance_ang is not None and not 0 <= self.min_distance_ang < math.inf:
            raise ValueError(f"min_distance_ang must be 0 or above and finite, got {self.min_distance_ang}")
        if self.restarts < 0:
            raise ValueError(f"restarts must be 0 or more, got {self.restarts}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be 0 (this process) or more, got {self.workers}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, got {self.seed}")
        if self.constraints not in (None, "none", "syntax", "full"):
            raise ValueError(f"constraints must be none, syntax or full, got {self.constraints!r}")
        if self.refine and self.rules == "none":
            raise ValueError("refine keeps what passes the checks, so it goes with rules, got rules='none'")
        if self.refiner is not None and not self.refine:
            raise ValueError(f"refiner goes with refine, got refiner={self.refiner!r} alone")
        if self.min_distance_ang is not None and self.constraints in ("none", "syntax"):
            raise ValueError(f"min_distance_ang goes with constraints=full, got constraints={self.constraints}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        self.draw  # noqa: B018  (its values are checked too)

    @property
    def draw(self) -> Draw:
        return Draw(self.temperature, self.top_k, self.top_p, self.guidance)

    @property
    def draws_per_prompt(self) -> int:
        return (self.max_draws or DRAWS_PER_VALID * self.num) if self.until_valid else self.num


def generate(
    prompt: str | Sequence[str] | None = None, config: GenerateConfig | None = None, **settings: Any
) -> list[CIFRecord]:
    """`num` records for each prompt, in order, drawn from a model and checked; `settings` are GenerateConfig's.

    Rejected ones say why (`rejected_by`, `reason`). With `until_valid` there are as many as it took to get `num` valid
    ones of each prompt, with `unique` such as no earlier prompt has either, with `novel` such as are not known, or
    max_draws. The same seed gives the same records. Raises PromptError for what no structure can satisfy.
    """
    if prompt is not None:
        settings["prompt"] = prompt if isinstance(prompt, str) else tuple(prompt)
    config = replace(config or GenerateConfig(), **settings)
    command = COMMAND_SETTINGS if config.novel else (*COMMAND_SETTINGS, "known")
    ignored = [name for name in command if getattr(config, name) != getattr(GenerateConfig, name)]
    if ignored:
        raise ValueError(f"generate() returns all records and writes none: {', '.join(ignored)} go with bin/sample.py")
    return Generator.load(config.model, config.device).generate(config)


class Generator:
    """A model with its vocabulary, ready to draw."""

    def __init__(self, model: GPT, tokenizer: CIFTokenizer, info: dict[str, Any] | None = None):
        self.model, self.tokenizer, self.info = model, tokenizer, info or {}
        self.form = text_form(tokenizer)

    @property
    def rules(self) -> Rules:
        """Of the canonical text."""
        return rules_of(self.tokenizer.vocabulary)

    @classmethod
    def load(cls, model: str | Path | None = None, device: str = "auto") -> Generator:
        """From a checkpoint folder, or from a CrystaLLM ckpt.pt; the bundled model where none is named.

        Kept while the checkpoint stays the same.
        """
        from crystallm.train.distribution import pick_device

        path = resolve_checkpoint(BUNDLED if model is None else model)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stamps = tuple((file.name, file.stat().st_mtime_ns) for file in files)
        return _load(str(path), str(pick_device(device)), stamps)

    @property
    def trained_properties(self) -> tuple[str, ...]:
        """Property lines that stood before structures in this model's training."""
        return tuple(self.info.get("run", {}).get("data", {}).get("properties", ()))

    def steering(self, config: GenerateConfig) -> Steering:
        """What config asks for besides prompts. Raises PromptError for what this model cannot be asked for."""
        vocabulary, trained = self.tokenizer.vocabulary, self.trained_properties
        return read_steering(vocabulary, config.properties, config.cell, config.prototype, trained)

    def prompts(self, config: GenerateConfig) -> list[Prompt]:
        """Those that config asks for. Raises PromptError for what no structure can satisfy."""
        steering = self.steering(config)
        asked = (config.space_group, config.formula_units, steering)
        prompts = []
        for place, source in placed_prompts(config.prompt):
            try:
                prompt = self._with_lines(self.form.prompt(source, *asked))
            except PromptError as err:
                raise PromptError(f"{place}: {err}" if place else str(err)) from None
            prompts.append(replace(prompt, place=place))
        return prompts

    def _with_lines(self, prompt: Prompt) -> Prompt:
        vocabulary, trained = self.tokenizer.vocabulary, self.trained_properties
        return replace(prompt, text=add_lines(prompt.text, prompt.steering, vocabulary, prompt.name, trained))

    def begin(self, prompt: Prompt, mode: Mode, min_distance_ang: float | None = None) -> Begun:
        """The prompt's tokens, and a maker of constraints. PromptError where they cannot be, or are too many."""
        ids, new_constraint = self.form.begin(prompt, mode, min_distance_ang)
        if len(ids) > (block_size := self.model.config.block_size):
            raise PromptError(f"{prompt.name}: {len(ids)} tokens, the model reads at most {block_size}")
        return ids, new_constraint

    def generate(self, config: GenerateConfig) -> list[CIFRecord]:
        """As the function `generate`; config.model and config.device are not looked at."""
        return list(self.stream(config))

    def stream(self, config: GenerateConfig) -> Iterator[CIFRecord]:
        """The records of `generate` one by one, none kept: memory does not grow with `num`.

        With `refine` they come by the thousand; with `unique` the canonical texts of the valid ones are kept.
        """
        return self.stream_from(self.prompts(config), config)

    def generate_from(self, prompts: Sequence[Prompt], config: GenerateConfig) -> list[CIFRecord]:
        """`generate` for prompts made elsewhere; what config says of prompts is not looked at."""
        return list(self.stream_from(prompts, config))

    def stream_from(self, prompts: Sequence[Prompt], config: GenerateConfig) -> Iterator[CIFRecord]:
        """`stream` for prompts made elsewhere. PromptError comes from this call, not from the first record."""
        if config.seed is None:
            config = replace(config, seed=secrets.randbits(32))
        mode = config.constraints or self.form.best_constraints
        config = replace(config, constraints=mode)
        series: collections.deque[Series] = collections.deque()
        earlier = self._earlier(config)
        seen: dict[str, int] = {}
        is_conditioned = False
        for number, prompt in enumerate(prompts):
            self.begin(prompt, mode, config.min_distance_ang)  # PromptError where that cannot be
            key = f"{prompt.text}{prompt.request}"
            stream = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
            first = seen.get(key, 0)  # a prompt that stands there twice goes on with other random numbers
            seen[key] = first + config.draws_per_prompt
            name = f"{number:04d}-" if len(prompts) > 1 else ""
            is_conditioned |= bool(property_lines(prompt.text))
            series.append(Series(number, name, prompt, stream, first, config, earlier))
        if config.guidance != 1 and not is_conditioned:
            raise PromptError(f"guidance={config.guidance:g} goes with properties, and none is asked for")
        if config.refine:
            from crystallm.sample.refined import load

            load(config.refiner, config.device)  # one that is not there is told now
        if config.workers == 0:
            return self._stream(series, functools.partial(draw_here, self, config=config))
        from crystallm.sample.workers import draw_in_workers

        n_wanted = config.num * len(series)
        return self._stream(series, functools.partial(draw_in_workers, self, config=config, n_wanted=n_wanted))

    def _earlier(self, config: GenerateConfig) -> Earlier | None:
        if not (config.unique or config.novel):
            return None
        from crystallm.checks.match_index import CrystalIndex

        known = known_crystals(config.known, self.info) if config.novel else None
        if config.novel and known is None:
            raise ValueError(
                "novel: nothing tells what this model was trained on: neither known.npz beside it nor its training "
                "data; name the known crystals (known=, --known)"
            )
        return Earlier(CrystalIndex() if config.unique else None, known)

    def _stream(
        self, unfinished: collections.deque[Series], draw: Callable[[Iterator[Ticket]], Iterator[CIFRecord]]
    ) -> Iterator[CIFRecord]:
        queue = Queue(unfinished)
        while unfinished:
            for record in draw(queue):
                queue.take(record)
                while unfinished:
                    yield from unfinished[0].pop_records()
                    if not unfinished[0].is_complete:
                        break
                    unfinished.popleft()
                if not unfinished:  # what is still being drawn is not wanted
                    return
                queue.ask(unfinished[0])  # in place of duplicates

    def draw(self, tickets: Iterable[Ticket], config: GenerateConfig) -> Iterator[CIFRecord]:
        """Their records, in order, not checked yet: what ends early waits for what began before.

        That is as many as the engine ends while it draws its longest sequence, whatever the number of tickets.
        """
        waiting: collections.deque[Ticket] = collections.deque()
        begun: dict[int, tuple[Begun, int]] = {}  # the last prompt's, since tickets come prompt by prompt

        def jobs() -> Iterator[Job]:
            for ticket in tickets:
                if ticket.number not in begun:
                    begun.clear()
                    n_condition = len(self.tokenizer.encode(property_lines(ticket.prompt.text)))
                    mode = config.constraints or self.form.best_constraints
                    begun[ticket.number] = self.begin(ticket.prompt, mode, config.min_distance_ang), n_condition
                (ids, new_constraint), n_condition = begun[ticket.number]
                waiting.append(ticket)
                yield Job(ticket.index, ids, new_constraint, config.restarts, n_condition)

        ended: dict[int, Sample] = {}
        for sample in self.sample(jobs(), config):
            ended[sample.index] = sample
            while waiting and waiting[0].index in ended:
                one = waiting.popleft()
                yield self.record(ended.pop(one.index), one.prompt, one.record_id, one.k, config)
        assert not ended and not waiting

    def checked(self, records: Iterator[CIFRecord], config: GenerateConfig) -> Iterator[CIFRecord]:
        """The records after the checks that config names, refined if that is asked for, in this process."""
        if config.rules == "none":
            return records
        from crystallm.checks.filter import FilterConfig, filter_records

        checks = FilterConfig(config.rules)
        found = filter_records(records, checks)
        if not config.refine:
            return found
        from crystallm.refine.records import RefineConfig
        from crystallm.sample.refined import load, refine_checked

        model, info = load(config.refiner, config.device)
        refine = RefineConfig(free_cell=not config.cell)  # numbers of the cell that were asked for stay
        return refine_checked(found, model, refine, checks, info["model_hash"], config.min_distance_ang)

    def records_of(
        self, samples: Iterable[Sample], prompt: Prompt, config: GenerateConfig, first: int = 0
    ) -> list[CIFRecord]:
        """Records, checked, of samples that a search has drawn for this prompt; they are numbered from `first` on."""
        drawn = (self.record(one, prompt, f"gen-{k:06d}", k, config) for k, one in enumerate(samples, first))
        return list(self.checked(drawn, config))

    def sample(self, jobs: Iterable[Job], config: GenerateConfig) -> Iterator[Sample]:
        import torch

        rows = rows_that_fit(self.model) if config.guidance == 1 else max(1, rows_that_fit(self.model) // 2)
        batch, dtype = min(config.batch, rows), getattr(torch, config.dtype)
        engine = Engine(self.model, self.form.slot_tokens, batch, dtype=dtype)
        assert config.seed is not None
        return engine.run(jobs, config.seed, config.draw)

    def record(self, sample: Sample, prompt: Prompt, record_id: str, k: int, config: GenerateConfig) -> CIFRecord:
        """The sample as text, full CIF and provenance, or with the reason why it has no end."""
        from crystallm.records import CIFRecord

        text = self.tokenizer.decode(sample.ids, errors="replace")
        n_tokens = len(sample.ids) - sample.n_prompt
        provenance = self.provenance(prompt, k, config) | {"restarts": sample.n_restarts, "tokens": n_tokens}
        scores = (sample.log_likelihood, sample.log_likelihood / max(n_tokens, 1), sample.log_mass)
        record = CIFRecord(
            id=record_id,
            cif=text,
            prompt=prompt.source,
            text=text,
            provenance=provenance,
            scores=dict(zip(SAMPLE_SCORES, scores, strict=True)),
        )
        if sample.stopped != "end":
            return replace(record, rejected_by=sample.stopped, reason=sample.reason)
        return self.form.finish(record)

    def provenance(self, prompt: Prompt, k: int, config: GenerateConfig) -> dict[str, Any]:
        """Of the prompt's k-th sample, as far as it is known before it is drawn."""
        settings = {
            "space_group": config.space_group,
            "formula_units": config.formula_units,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "constraints": config.constraints,
            "min_distance_ang": config.min_distance_ang,
            "guidance": None if config.guidance == 1 else config.guidance,
            "dtype": None if config.dtype == "float32" else config.dtype,
        }
        return {
            "generator": f"crystallm {__version__}",
            "model": Path(self.info.get("path", "")).name,
            "model_hash": self.info.get("model_hash", ""),
            "prompt": prompt.source,
            "seed": config.seed,
            "index": k,
            "settings": {name: value for name, value in settings.items() if value is not None}
            | prompt.steering.settings,
        }


def draw_here(generator: Generator, tickets: Iterator[Ticket], config: GenerateConfig) -> Iterator[CIFRecord]:
    """Records of the tickets, in order, drawn, checked and refined in this process."""
    return generator.checked(generator.draw(tickets, config), config)


@functools.lru_cache(maxsize=2)
def _load(folder: str, device: str, stamps: tuple[tuple[str, int], ...]) -> Generator:
    from crystallm.model.checkpoint import load_checkpoint

    return Generator(*load_checkpoint(folder, device))


def rows_that_fit(model: GPT) -> int:
    """Sequences whose keys and values fit in CACHE_BYTES, or half of a GPU's free memory, if all grow to the end."""
    import torch

    from crystallm.sample.decoder import room_of_row

    config, weight = model.config, next(model.parameters())
    row_bytes = 2 * config.n_layer * room_of_row(config.block_size) * config.n_embd * weight.element_size()
    free = torch.cuda.mem_get_info(weight.device)[0] // 2 if weight.is_cuda else CACHE_BYTES
    return max(1, free // row_bytes)
