"""A forward pass over rows that each take a different number of new tokens, with a preallocated KV cache.

Rows get between 1 and 20 tokens at once (forced ones are fed together), so a padded (B, T) pass would spend most of its
time on padding. Here the tokens of all rows are packed into one list for everything but attention itself.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crystallm.model.gpt import GPT, Block, rotate

# Rows whose attention is computed in one call on a CPU: few, so that one long row pads few others.
ROWS_TOGETHER = 16


class PackedDecoder:
    """Keys and values of `n_rows` sequences. Room for longer ones is made when they come, twice as much each time."""

    def __init__(self, model: GPT, n_rows: int, n_positions: int = 64):
        self.model = model
        with torch.no_grad():
            self.table = model.table()  # (vocab_size, C)
        self.device = self.table.device
        self.keys, self.values = self._empty(n_rows, n_positions), self._empty(n_rows, n_positions)  # (L, B, H, S, D)

    @property
    def n_rows(self) -> int:
        return self.keys.shape[1]

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these; rows[i] becomes row i."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]

    def _empty(self, n_rows: int, n_positions: int) -> Tensor:
        config = self.model.config
        shape = (config.n_layer, n_rows, config.n_head, n_positions, config.n_embd // config.n_head)
        # Zeros: what is masked gets the weight 0, and 0 times the nan that may lie in unwritten memory is nan.
        return torch.zeros(shape, dtype=self.table.dtype, device=self.device)

    def _reserve(self, n_positions: int) -> None:
        have = self.keys.shape[3]
        if n_positions > have:
            for name in ("keys", "values"):
                larger = self._empty(self.n_rows, max(n_positions, 2 * have))
                larger[:, :, :, :have] = getattr(self, name)
                setattr(self, name, larger)

    @torch.no_grad()
    def forward(self, ids: list[int], rows: list[int], positions: list[int]) -> Tensor:
        """The next tokens, rows ascending: ids, rows, positions, N each -> hidden states after the last norm (N, C)."""
        model, device = self.model, self.device
        row, position = np.array(rows), np.array(positions)
        self._reserve(int(position.max()) + 1)
        blocks = self._blocks(row, position)
        row_t, position_t = (torch.from_numpy(array).to(device) for array in (row, position))
        x = F.embedding(torch.tensor(ids, device=device), self.table)  # (N, C)
        rotation = None
        if model.wpe is not None:
            x = x + model.wpe(position_t)
        else:
            rotation = model.cos[position_t][:, None], model.sin[position_t][:, None]  # (N, 1, D / 2) each
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            attention = block.attn
            q, k, v = attention.c_attn(block.ln_1(x)).view(len(ids), 3, attention.n_head, -1).unbind(1)  # (N, H, D)
            if attention.qk_norm:
                q, k = (F.rms_norm(y, (y.shape[-1],)) for y in (q, k))
            if rotation is not None:
                q, k = rotate(q, *rotation), rotate(k, *rotation)
            keys, values = self.keys[layer], self.values[layer]  # (B, H, S or more, D)
            keys[row_t, :, position_t], values[row_t, :, position_t] = k, v
            y = torch.cat([b.attend(q, keys, values) for b in blocks])  # (N, H, D)
            x = x + attention.c_proj(y.flatten(1))
            x = x + block.mlp(block.ln_2(x))
        return model.ln_f(x)

    def _blocks(self, row: np.ndarray, position: np.ndarray) -> list[_RowBlock]:
        starts = np.flatnonzero(np.diff(row, prepend=-1))  # where each row's tokens begin
        column = np.arange(len(row)) - np.repeat(starts, np.diff(starts, append=len(row)))
        size = ROWS_TOGETHER if self.device.type == "cpu" else self.n_rows
        edges = np.searchsorted(row, np.arange(0, self.n_rows + size, size))
        blocks = []
        for number, (begin, end) in enumerate(itertools.pairwise(edges.tolist())):
            if begin < end:
                rows = slice(number * size, min((number + 1) * size, self.n_rows))
                part = slice(begin, end)
                blocks.append(_RowBlock(rows, part, row[part] - rows.start, column[part], position[part], self.device))
        return blocks


class _RowBlock:
    """Attention of some neighbouring rows, padded to the longest among them only."""

    def __init__(
        self,
        rows: slice,
        tokens: slice,
        row: np.ndarray,  # (n,) within the block
        column: np.ndarray,  # (n,) place among the row's new tokens
        position: np.ndarray,  # (n,)
        device: torch.device,
    ):
        self.rows, self.tokens = rows, tokens
        self.shape = rows.stop - rows.start, int(column.max()) + 1  # (B, T)
        self.span = int(position.max()) + 1
        # A padding query looks at position 0, and nobody reads what it sees.
        query_position = np.zeros(self.shape, dtype=np.int64)
        query_position[row, column] = position
        mask = np.arange(self.span) <= query_position[:, None, :, None]
        self.mask = torch.from_numpy(mask).to(device)  # (B, 1, T, S)
        self.place = torch.from_numpy(row * self.shape[1] + column).to(device)  # in (B * T)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q (N, H, D) of all tokens, keys and values (B, H, S or more, D) of all rows -> (n, H, D) of this block's"""
        n_head, width = q.shape[1:]
        queries = q.new_zeros(self.shape[0] * self.shape[1], n_head, width)
        queries[self.place] = q[self.tokens]
        y = F.scaled_dot_product_attention(
            queries.view(*self.shape, n_head, width).transpose(1, 2),
            keys[self.rows, :, : self.span],
            values[self.rows, :, : self.span],
            attn_mask=self.mask,
        )
        return y.transpose(1, 2).reshape(-1, n_head, width)[self.place]
