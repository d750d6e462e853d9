"""Batches: whole structures, padded on the right, with the places where the model chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crystallm.model.tokens import FORCED, TokenSpec

# ids (T,) -> the places where a choice is left, each with what may stand there among its slot's tokens (None: all)
Choices = Callable[[np.ndarray], Mapping[int, np.ndarray | None]]


@dataclass(frozen=True, eq=False)
class Batch:
    """B structures of at most T tokens. The n chosen tokens are sorted by softmax group, so a group is one slice.

    The hidden state that predicts a chosen token stands one place before it; `positions` already says where.
    """

    ids: Tensor  # (B, T) int64, padded on the right
    positions: Tensor  # (n,) int64, index into (B * T): the state that predicts the chosen token
    targets: Tensor  # (n,) int64, index of the chosen token among its group's tokens
    slots: Tensor  # (n,) int64
    groups: tuple[tuple[int, int], ...]  # (group, how many of the n), in the order of `positions`
    classes: frozenset[str]  # number classes among `ids`
    n_tokens: int  # tokens that are not padding
    # Per group (n of the group, tokens of the group) bool: what constraints let through; None: everything
    masks: tuple[Tensor | None, ...] = ()

    @property
    def n_structures(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        kind = torch.device(device).type
        if kind == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:  # pinned, so that copying does not wait
            return (tensor.pin_memory() if kind == "cuda" else tensor).to(device, non_blocking=True)

        return replace(
            self,
            ids=moved(self.ids),
            positions=moved(self.positions),
            targets=moved(self.targets),
            slots=moved(self.slots),
            masks=tuple(None if mask is None else moved(mask) for mask in self.masks),
        )


def make_batch(
    sequences: Sequence[np.ndarray],
    spec: TokenSpec,
    prompt_lengths: Sequence[int] | None = None,
    choices: Choices | None = None,
) -> Batch:
    """Pad sequences of ids to one length; `prompt_lengths`: tokens that are given (default: up to `data_`).

    `choices`: where more than the grammar leaves no choice, and which tokens it lets through elsewhere.
    """
    if not sequences:
        raise ValueError("a batch needs at least one sequence, got none")
    lengths = np.array([len(s) for s in sequences])
    flat = np.concatenate(sequences).astype(np.int64)  # (n_tokens,)
    row = np.repeat(np.arange(len(sequences)), lengths)
    column = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if all(s[-1] == spec.end_id for s in sequences):
        flat_slots = spec.slots(flat)
    else:  # a part of a structure: the grammar cannot go on from it to the next
        flat_slots = np.concatenate([spec.slots(np.asarray(s, dtype=np.int64)) for s in sequences])
    places, masks = np.zeros(0, dtype=np.int64), []
    if choices is not None:
        left = [choices(sequence) for sequence in sequences]
        starts = np.cumsum(lengths) - lengths
        places = np.array([start + place for start, one in zip(starts, left, strict=True) for place in one])
        masks = [mask for one in left for mask in one.values()]
        flat_slots = np.where(np.isin(np.arange(len(flat)), places), flat_slots, FORCED)
    given = np.asarray(_condition_lengths(flat, row, column, spec) if prompt_lengths is None else prompt_lengths)
    # Nothing stands before the first token to predict it from, so one token at least is given.
    flat_slots = np.where(column < np.maximum(given, 1)[row], FORCED, flat_slots)

    width = int(lengths.max())
    ids = np.full((len(sequences), width), spec.pad_id, dtype=np.int64)
    slots = np.full((len(sequences), width), FORCED, dtype=np.int64)
    ids[row, column], slots[row, column] = flat, flat_slots
    batch = batch_from_arrays(ids, slots, spec, n_tokens=len(flat))
    if choices is None:
        return batch
    of_position = dict(zip((row * width + column)[places] - 1, masks, strict=True))
    return replace(batch, masks=tuple(_group_masks(batch, of_position, spec)))


def _group_masks(
    batch: Batch, of_position: Mapping[int, np.ndarray | None], spec: TokenSpec
) -> Iterator[Tensor | None]:
    start = 0
    for group, count in batch.groups:
        masks = [of_position[int(position)] for position in batch.positions[start : start + count]]
        start += count
        if all(mask is None for mask in masks):
            yield None
            continue
        everything = np.ones(len(spec.group_tokens[group]), dtype=bool)
        yield torch.from_numpy(np.stack([everything if mask is None else mask for mask in masks]))


def _condition_lengths(flat: np.ndarray, row: np.ndarray, column: np.ndarray, spec: TokenSpec) -> np.ndarray:
    """Tokens up to and with `data_` in each row (B,): conditions are inputs only."""
    given = np.zeros(int(row[-1]) + 1, dtype=np.int64)
    found = np.flatnonzero(flat == spec.data_id)
    given[row[found]] = column[found] + 1
    return given


def batch_from_arrays(ids: np.ndarray, slots: np.ndarray, spec: TokenSpec, n_tokens: int) -> Batch:
    """ids (B, T) padded, slots (B, T) with FORCED where nothing was chosen -> Batch"""
    chosen = np.flatnonzero(slots.ravel() != FORCED)
    slot = slots.ravel()[chosen]
    group = spec.slot_group[slot]
    order = np.argsort(group, kind="stable")
    chosen, slot, group = chosen[order], slot[order], group[order]
    targets = spec.index_in_group[group, ids.ravel()[chosen]]
    if (targets < 0).any():
        bad = int(np.flatnonzero(targets < 0)[0])
        raise ValueError(
            f"row {chosen[bad] // ids.shape[1]}, token {chosen[bad] % ids.shape[1]}: id {ids.ravel()[chosen[bad]]} "
            f"is not among the {len(spec.group_tokens[group[bad]])} tokens of slot {spec.slot_names[slot[bad]]!r}"
        )
    found, counts = np.unique(group, return_counts=True)
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(chosen - 1),
        targets=torch.from_numpy(targets.astype(np.int64)),
        slots=torch.from_numpy(slot),
        groups=tuple(zip(found.tolist(), counts.tolist(), strict=True)),
        classes=spec.classes_among(ids),
        n_tokens=n_tokens,
    )
