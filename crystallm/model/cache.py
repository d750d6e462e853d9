"""Keys and values of the tokens read so far, preallocated, each row at its own position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from crystallm.model.gpt import GPTConfig


class KVCache:
    """Room for `batch` sequences of up to `max_len` tokens; `lengths` (batch,) says how many each row holds.

    Rows may take different numbers of new tokens in one call: what pads a row is written to a scratch place behind
    the last position, which no query sees.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.max_len = config.block_size if max_len is None else max_len
        if self.max_len > config.block_size:
            raise ValueError(f"max_len must be at most block_size (={config.block_size}), got {max_len}")
        shape = (config.n_layer, batch, config.n_head, self.max_len + 1, config.n_embd // config.n_head)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._rows = torch.arange(batch, device=device)[:, None]  # (batch, 1)
        self._write = self.lengths[:, None]  # (batch, T) where the tokens of the current call go
        self._used = torch.zeros_like(self.lengths)  # (batch,) new tokens of the current call
        self._span = 0  # how many positions the current call looks at

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    def begin(self, n_tokens: int, n_new: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Open a call with `n_tokens` columns, of which row b uses the first n_new[b] (default: all).

        Returns positions (B, T) and the mask (B, 1, T, S) of what each new token may look at.
        """
        steps = torch.arange(n_tokens, device=self.lengths.device)
        positions = self.lengths[:, None] + steps  # (B, T)
        used = n_new if n_new is not None else torch.full_like(self.lengths, n_tokens)
        longest = int((self.lengths + used).max())
        if longest > self.max_len:
            row = int((self.lengths + used).argmax())
            held, new = int(self.lengths[row]), int(used[row])
            raise ValueError(f"row {row}: {held} tokens and {new} new ones exceed max_len={self.max_len}")
        self._write = positions if n_new is None else torch.where(steps < used[:, None], positions, self.max_len)
        self._span = longest
        self._used = used
        mask = torch.arange(longest, device=positions.device) <= positions[:, None, :, None]  # (B, 1, T, S)
        return positions.clamp(max=self.max_len - 1), mask

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (B, H, T, D) of the new tokens -> all keys and values so far, (B, H, S, D) each"""
        keys, values = self.k[layer], self.v[layer]
        keys[self._rows, :, self._write] = k.transpose(1, 2).to(keys.dtype)
        values[self._rows, :, self._write] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self._span], values[:, :, : self._span]

    def end(self) -> None:
        self.lengths = self.lengths + self._used

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget the rows (default: all), so that new sequences can start there."""
        if rows is None:
            self.lengths.zero_()
        else:
            self.lengths[rows] = 0

    def select(self, rows: Tensor) -> KVCache:
        """A new cache that holds the given rows, in this order; a row may be taken more than once."""
        chosen = object.__new__(KVCache)
        chosen.max_len = self.max_len
        chosen.k, chosen.v, chosen.lengths = self.k[:, rows], self.v[:, rows], self.lengths[rows]
        chosen._rows = torch.arange(len(rows), device=self.lengths.device)[:, None]
        chosen._write, chosen._used, chosen._span = chosen.lengths[:, None], torch.zeros_like(chosen.lengths), 0
        return chosen

    def copy_rows(self, rows: Tensor, source: KVCache, source_rows: Tensor) -> None:
        """Overwrite `rows` with rows of another cache: a prompt read once serves many samples."""
        span = int(source.lengths[source_rows].max())
        if span > self.max_len:
            raise ValueError(f"source rows hold up to {span} tokens, this cache max_len={self.max_len}")
        self.k[:, rows, :, :span] = source.k[:, source_rows, :, :span].to(self.k.dtype)
        self.v[:, rows, :, :span] = source.v[:, source_rows, :, :span].to(self.v.dtype)
        self.lengths[rows] = source.lengths[source_rows]
