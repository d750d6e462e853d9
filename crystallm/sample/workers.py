"""Samples drawn, written and checked in several processes, each with a model of its own.

A sample follows from its seed and index alone, so it does not matter which process draws it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crystallm.parallel import Failure, available_cores, map_processes
from crystallm.records import CIFRecord
from crystallm.sample.queue import Ticket

if TYPE_CHECKING:
    from crystallm.sample.generate import GenerateConfig, Generator

LEAST_PORTION = 16  # tickets that a process gets at once, so that it draws batches and not rows
ROUNDS = 4  # portions for each process, so that none waits long for the last
BATCHES_IN_PORTION = 4  # at most: rows that end early are followed by others


def draw_in_workers(
    generator: Generator, tickets: Iterator[Ticket], config: GenerateConfig, n_wanted: int
) -> Iterator[CIFRecord]:
    """Checked records in the order of the tickets, of which there will be about `n_wanted`.

    A process that dies, or takes longer than a check may, costs the record at fault: `rejected_by` is "error" then.
    Raises ValueError for a model that is in no checkpoint, from which the processes could read it.
    """
    from crystallm.checks.filter import FilterConfig

    path, model_hash = generator.info.get("path"), generator.info.get("model_hash", "")
    if path is None:
        raise ValueError("workers read the model from its checkpoint, and this one has none: save it, or use workers=0")
    workers = available_cores() if config.workers is None else config.workers
    most = BATCHES_IN_PORTION * config.batch
    portion = min(max(LEAST_PORTION, -(-n_wanted // (ROUNDS * workers))), most)
    workers = max(1, min(workers, -(-n_wanted // portion)))
    device = str(next(generator.model.parameters()).device)
    draw: Any = functools.partial(_draw_portion, str(path), model_hash, replace(config, workers=0, device=device))
    handed_out: deque[Ticket] = deque()
    results = map_processes(
        draw,
        _Noted(tickets, handed_out),
        workers,
        portion,
        timeout_s=FilterConfig(config.rules).timeout_s if config.rules != "none" else None,
        whole_chunks=True,
    )
    for result in results:
        ticket = handed_out.popleft()
        yield _lost(generator, ticket, result, config) if isinstance(result, Failure) else result


class _Noted:
    """Tickets as they are handed out, noted for those whose record does not come back."""

    def __init__(self, tickets: Iterator[Ticket], handed_out: deque[Ticket]):
        self.tickets, self.handed_out = tickets, handed_out

    def __iter__(self) -> Iterator[Ticket]:
        return self

    def __next__(self) -> Ticket:
        ticket = next(self.tickets)
        self.handed_out.append(ticket)
        return ticket


def _lost(generator: Generator, ticket: Ticket, failure: Failure, config: GenerateConfig) -> CIFRecord:
    provenance = generator.provenance(ticket.prompt, ticket.k, config) | {"restarts": 0, "tokens": 0}
    source = ticket.prompt.source
    return CIFRecord(
        ticket.record_id, "", prompt=source, rejected_by="error", reason=str(failure), provenance=provenance
    )


def _draw_portion(path: str, model_hash: str, config: GenerateConfig, tickets: list[Ticket]) -> list[CIFRecord]:
    from crystallm.sample.generate import Generator, draw_here

    generator = Generator.load(path, config.device)
    if generator.info["model_hash"] != model_hash:
        raise ValueError(f"{path} has changed since it was loaded: load it again, or use workers=0")
    return list(draw_here(generator, iter(tickets), config))
