"""From a prompt to checked records:  generate("NaCl", num=8, seed=0)

Draws, writes full CIFs, runs the checks, marks duplicates. Nothing is dropped: what is not a crystal comes back with
the check that rejected it and the reason.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.resources import resource_path
from crystallm.sample.constraints import Constraint
from crystallm.sample.engine import Engine, Job, Sample
from crystallm.sample.logits import Draw
from crystallm.sample.prompts import Mode, Prompt, begin, parse_prompt, read_prompts
from crystallm.sample.rules import Rules, rules_of
from crystallm.version import __version__

if TYPE_CHECKING:
    import torch

    from crystallm.model.gpt import GPT
    from crystallm.records import CIFRecord
    from tokenizer import CIFTokenizer

BUNDLED_MODEL = "resources/model"
DRAWS_PER_VALID = 20  # with until_valid and no max_draws


@dataclass(frozen=True)
class GenerateConfig:
    prompt: str | tuple[str, ...] | None = None  # formula, chemical system, CIF prefix, a file of them, or nothing
    space_group: str | None = None  # symbol in any spelling, or number
    formula_units: int | None = None  # in the primitive cell
    num: int = 8  # samples for each prompt
    temperature: float = 1.0  # 0: always the most likely token
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None  # None: a fresh one
    constraints: Mode = "full"
    min_distance_ang: float | None = None  # between any two atoms; None: by their covalent radii, as the checks do
    restarts: int = 20  # a sample that no token can follow is drawn again, up to so many times
    until_valid: bool = False  # draw until `num` are valid
    max_draws: int | None = None  # for each prompt then; None: 20 for each that is wanted
    unique: bool = False  # reject what matches an earlier one
    rules: str = "default"  # checks: default | crystallm | cdvae | none
    model: str | None = None  # checkpoint; None: the bundled one
    device: str = "auto"  # auto | cpu | cuda | mps
    batch: int = 256  # sequences at once
    workers: int | None = 0  # processes for the checks; None: one a core
    keep_rejected: bool = False  # write them too
    out: str | None = None  # folder, .tar or .parquet
    known: str | None = None  # index of known crystals (known.parquet); None: the model's own, if it has one

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.max_draws is not None and self.max_draws < self.num:
            raise ValueError(f"max_draws must be at least num (={self.num}), got {self.max_draws}")
        if self.restarts < 0:
            raise ValueError(f"restarts must be 0 or more, got {self.restarts}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, got {self.seed}")
        if self.constraints not in ("none", "syntax", "full"):
            raise ValueError(f"constraints must be none, syntax or full, got {self.constraints!r}")
        self.draw  # noqa: B018  (its values are checked too)

    @property
    def draw(self) -> Draw:
        return Draw(self.temperature, self.top_k, self.top_p)

    @property
    def draws_per_prompt(self) -> int:
        return (self.max_draws or DRAWS_PER_VALID * self.num) if self.until_valid else self.num


def generate(
    prompt: str | Sequence[str] | None = None, config: GenerateConfig | None = None, **settings: Any
) -> list[CIFRecord]:
    """`num` records for each prompt, in order, drawn from a model and checked; `settings` are GenerateConfig's.

    Rejected ones say why (`rejected_by`, `reason`). With `until_valid` there are as many as it took to get `num` valid
    ones, or max_draws. The same seed gives the same records. Raises PromptError for what no structure can satisfy.
    """
    if prompt is not None:
        settings["prompt"] = prompt if isinstance(prompt, str) else tuple(prompt)
    config = replace(config or GenerateConfig(), **settings)
    return Generator.load(config.model, config.device).generate(config)


class Generator:
    """A model with its vocabulary, ready to draw."""

    def __init__(self, model: GPT, tokenizer: CIFTokenizer, info: dict[str, Any] | None = None):
        self.model, self.tokenizer, self.info = model, tokenizer, info or {}
        self.rules: Rules = rules_of(tokenizer.vocabulary)

    @classmethod
    def load(cls, model: str | Path | None = None, device: str = "auto") -> Generator:
        """From a checkpoint folder; the bundled model where none is named. Kept while the checkpoint stays the same."""
        from crystallm.model.checkpoint import resolve_checkpoint

        folder = resolve_checkpoint(resource_path(BUNDLED_MODEL) if model is None else model)
        stamps = tuple((file.name, file.stat().st_mtime_ns) for file in sorted(folder.iterdir()))
        return _load(str(folder), str(pick_device(device)), stamps)

    def generate(self, config: GenerateConfig) -> list[CIFRecord]:
        """As the function `generate`; config.model and config.device are not looked at."""
        asked = (config.space_group, config.formula_units)
        return self.generate_from([parse_prompt(source, *asked) for source in read_prompts(config.prompt)], config)

    def generate_from(self, prompts: Sequence[Prompt], config: GenerateConfig) -> list[CIFRecord]:
        """`generate` for prompts made elsewhere; what config says of prompts is not looked at."""
        if config.seed is None:
            config = replace(config, seed=secrets.randbits(32))
        series = [_Series(prompt) for prompt in prompts]
        seen: dict[str, int] = {}
        for number, one in enumerate(series):
            one.ids, one.new_constraint = begin(one.prompt, self.rules, config.constraints, config.min_distance_ang)
            key = f"{one.prompt.text}{one.prompt.request}"
            one.stream = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
            one.first = seen.get(key, 0)  # a prompt that stands there twice goes on with other random numbers
            seen[key] = one.first + config.draws_per_prompt
            one.name = f"{number:04d}-" if len(series) > 1 else ""
        while waiting := [one for one in series if one.n_wanted(config)]:
            self._round(waiting, config)
        return [record for one in series for record in one.records]

    def _round(self, series: list[_Series], config: GenerateConfig) -> None:
        """Draw what each series still wants, and check it."""
        wanted = [(one, one.first + len(one.records) + k) for one in series for k in range(one.n_wanted(config))]
        jobs = {one.stream << 32 | k: (one, k) for one, k in wanted}
        samples = {sample.index: sample for sample in self.sample(jobs.items(), config)}
        records = [self.record(samples[index], one, k, config) for index, (one, k) in jobs.items()]
        if config.rules != "none":
            from crystallm.checks.filter import FilterConfig, filter_records

            records = list(filter_records(records, FilterConfig(config.rules, workers=config.workers)))
        for (one, _), record in zip(jobs.values(), records, strict=True):
            one.add(record, config)

    def sample(self, jobs: Iterable[tuple[int, tuple[_Series, int]]], config: GenerateConfig) -> Iterator[Sample]:
        grammar = self.rules.grammar
        slots = [*grammar.slot_tokens, np.arange(self.tokenizer.vocab_size)]  # the last for constraints=none
        engine = Engine(self.model, slots, config.batch)
        assert config.seed is not None
        queue = (Job(index, one.ids, one.new_constraint, config.restarts) for index, (one, _) in jobs)
        return engine.run(queue, config.seed, config.draw)

    def record(self, sample: Sample, series: _Series, k: int, config: GenerateConfig) -> CIFRecord:
        """The sample as text, full CIF and provenance, or with the reason why it has no end."""
        from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError
        from crystallm.cif import write_cif
        from crystallm.records import CIFRecord

        text = self.tokenizer.decode(sample.ids, errors="replace")
        n_tokens = len(sample.ids) - sample.n_prompt
        provenance = self._provenance(series, k, config) | {"restarts": sample.n_restarts}
        record = CIFRecord(
            id=f"gen-{series.name}{k - series.first:06d}",
            cif=text,
            prompt=series.prompt.source,
            text=text,
            provenance=provenance,
            scores={
                "log_likelihood_nats": sample.log_likelihood,
                "log_likelihood_per_token": sample.log_likelihood / max(n_tokens, 1),
                "log_mask_mass_nats": sample.log_mass,
            },
        )
        if sample.stopped != "end":
            return replace(record, rejected_by=sample.stopped, reason=sample.reason)
        try:
            return replace(record, cif=write_cif(AsymmetricUnit.from_text(text), provenance))
        except CanonicalError as err:
            return replace(record, rejected_by=err.reason, reason=str(err))
        except ValueError as err:  # a cell without volume
            return replace(record, rejected_by="bad_cell", reason=str(err))

    def _provenance(self, series: _Series, k: int, config: GenerateConfig) -> dict[str, Any]:
        settings = {
            "space_group": config.space_group,
            "formula_units": config.formula_units,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "constraints": config.constraints,
            "min_distance_ang": config.min_distance_ang,
        }
        return {
            "generator": f"crystallm {__version__}",
            "model": Path(self.info.get("path", "")).name,
            "model_hash": self.info.get("model_hash", ""),
            "prompt": series.prompt.source,
            "seed": config.seed,
            "index": k,
            "settings": {name: value for name, value in settings.items() if value is not None},
        }


class _Series:
    """The samples of one prompt."""

    ids: list[int]
    new_constraint: Callable[[], Constraint]

    def __init__(self, prompt: Prompt):
        self.prompt = prompt
        self.stream = 0  # of random numbers
        self.first = 0  # index in it
        self.name = ""
        self.records: list[CIFRecord] = []
        self.n_valid = 0

    def n_wanted(self, config: GenerateConfig) -> int:
        """How many to draw next. With until_valid, as many as the share of valid ones so far makes likely to do."""
        drawn = len(self.records)
        if not config.until_valid:
            return config.num - drawn
        missing, left = config.num - self.n_valid, config.draws_per_prompt - drawn
        if missing <= 0 or left <= 0:
            return 0
        share = (self.n_valid + 1) / (drawn + 1)
        return min(left, config.batch, math.ceil(missing / share))

    def add(self, record: CIFRecord, config: GenerateConfig) -> None:
        """Records beyond the last that is wanted are dropped: how many were drawn at a time must not show."""
        if config.until_valid and self.n_valid == config.num:
            return
        if config.unique and record.rejected_by is None:
            record = _mark_duplicate(record, self.records)
        self.records.append(record)
        self.n_valid += record.rejected_by is None


def _mark_duplicate(record: CIFRecord, earlier: Sequence[CIFRecord]) -> CIFRecord:
    from crystallm.checks.known import find_match

    kept = [other for other in earlier if other.rejected_by is None]
    match = find_match(record.text, [other.text for other in kept])
    if match is None:
        return record
    return replace(record, rejected_by="duplicate", reason=f"the same crystal as {kept[match].id}")


@functools.lru_cache(maxsize=2)
def _load(folder: str, device: str, stamps: tuple[tuple[str, int], ...]) -> Generator:
    from crystallm.model.checkpoint import load_checkpoint

    return Generator(*load_checkpoint(folder, device))


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else MPS, else the CPU. ValueError for a device that is not there."""
    import torch

    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has[kind]))
    if not has.get(name.split(":")[0], False):
        raise ValueError(f"no device {name!r} here; there are auto, {', '.join(kind for kind in has if has[kind])}")
    return torch.device(name)
