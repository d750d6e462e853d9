"""Batches: whole structures, padded on the right, with the places where the model chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crystallm.model.tokens import FORCED, TokenSpec


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

    @property
    def n_structures(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        kind = torch.device(device).type
        if kind == "cpu":
            return self
        names = ("ids", "positions", "targets", "slots")
        tensors = {name: getattr(self, name) for name in names}
        if kind == "cuda":  # pinned, so that copying does not wait
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved)


def make_batch(
    sequences: Sequence[np.ndarray],
    spec: TokenSpec,
    prompt_lengths: Sequence[int] | None = None,
    pad_multiple: int = 1,
) -> Batch:
    """Pad sequences of ids to one length; `prompt_lengths`: tokens that are given (default: up to `data_`)."""
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
    given = np.asarray(_condition_lengths(flat, row, column, spec) if prompt_lengths is None else prompt_lengths)
    # Nothing stands before the first token to predict it from, so one token at least is given.
    flat_slots = np.where(column < np.maximum(given, 1)[row], FORCED, flat_slots)

    width = -(-int(lengths.max()) // pad_multiple) * pad_multiple
    ids = np.full((len(sequences), width), spec.pad_id, dtype=np.int64)
    slots = np.full((len(sequences), width), FORCED, dtype=np.int64)
    ids[row, column], slots[row, column] = flat, flat_slots
    return batch_from_arrays(ids, slots, spec, n_tokens=len(flat))


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
