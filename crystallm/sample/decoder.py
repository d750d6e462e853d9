"""A forward pass over rows that each take a different number of new tokens, with a KV cache.

Rows get between 1 and 20 tokens at once (forced ones are fed together), so a padded (B, T) pass would spend most of its
time on padding. Here the tokens of all rows are packed into one list for everything but attention itself, and rows of
similar length share a cache without gaps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crystallm.model.gpt import GPT, Block
from crystallm.sample.transfer import moved

# Matrices come in few sizes: oneDNN, which multiplies in bfloat16 on a CPU, prepares itself for each new one for
# 0.7 ms, as long as a layer's largest product takes with 200 tokens.
TOKENS_MULTIPLE = 32
ROWS_MULTIPLE = 16
# Rows with at most so many new tokens are padded to the longest, and attention is two plain products: for such few
# queries a fifth of the time of PyTorch's kernel. Rows with more of them (prompts) are left to that kernel.
FEW_QUERIES = 16
MASKED = -1e9
FIRST_ROOM = 32  # positions that a row is given room for at first


def room_of_row(block_size: int, n_positions: int = FIRST_ROOM) -> int:
    """Positions that a decoder keeps room for, a row: in each of its pools, whatever the row's length."""
    capacity = room = n_positions
    while capacity < block_size:
        capacity *= 2
        room += capacity
    return room


class PackedDecoder:
    """Keys and values of `n_rows` sequences. Room for longer ones is made when they come."""

    def __init__(self, model: GPT, n_rows: int, n_positions: int = FIRST_ROOM, dtype: torch.dtype | None = None):
        """`n_positions`: room that a row is given at first, then twice as much each time.

        `dtype` of matrix products and cache, by default the model's. What the blocks add up, and what comes out, stays
        in the model's.
        """
        self.model, self.n_rows, self.n_positions = model, n_rows, n_positions
        with torch.no_grad():
            self.table = model.table()  # (vocab_size, C)
        self.device, self.dtype = self.table.device, dtype or self.table.dtype
        self.layers = _layers(model, self.dtype)
        self._pools: dict[int, _Pool] = {}  # by capacity
        self._capacity = np.zeros(n_rows, dtype=np.int64)  # of each row's pool, 0: in none
        self._slot = np.zeros(n_rows, dtype=np.int64)  # in its pool

    def forget(self, rows: Sequence[int]) -> None:
        """Free the room of rows that have ended. They begin again at position 0."""
        self._leave(np.asarray(rows, dtype=np.int64))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these; rows[i] becomes row i. A row may be kept more than once."""
        kept = np.asarray(rows, dtype=np.int64)
        old, self._pools, self.n_rows = self._pools, {}, len(kept)
        capacity, slot = self._capacity[kept], self._slot[kept]
        self._capacity, self._slot = np.zeros_like(capacity), np.zeros_like(slot)
        for size in np.unique(capacity[capacity > 0]).tolist():
            members = np.flatnonzero(capacity == size)
            pool = self._pool(size)
            self._slot[members], self._capacity[members] = pool.add(members), size
            pool.copy(self._slot[members], old[size], slot[members])

    def _pool(self, capacity: int) -> _Pool:
        if capacity not in self._pools:
            self._pools[capacity] = _Pool(self.model, self.n_rows, capacity, self.dtype, self.device)
        return self._pools[capacity]

    def _leave(self, rows: np.ndarray) -> None:
        for capacity in np.unique(self._capacity[rows]).tolist():
            if capacity > 0:
                pool = self._pools[capacity]
                moved, slots = pool.remove(self._slot[rows[self._capacity[rows] == capacity]])
                self._slot[moved] = slots
                if len(pool.rows) == 0:
                    del self._pools[capacity]
        self._capacity[rows] = 0

    def _settle(self, rows: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        """Give rows (n,), which have `begin` positions and get `end`, a place where there is room."""
        doublings = np.ceil(np.log2(np.maximum(end / self.n_positions, 1))).astype(np.int64)
        wanted = self.n_positions << doublings
        for size in np.unique(wanted).tolist():
            moving = np.flatnonzero((wanted == size) & (self._capacity[rows] != size))
            if len(moving):
                movers, pool = rows[moving], self._pool(size)
                slots, capacity = pool.add(movers), np.where(begin[moving] > 0, self._capacity[movers], 0)
                for old in np.unique(capacity[capacity > 0]).tolist():
                    which = capacity == old
                    pool.copy(slots[which], self._pools[old], self._slot[movers[which]])
                self._leave(movers)
                self._slot[movers], self._capacity[movers] = slots, size

    @torch.no_grad()
    def forward(
        self, ids: Sequence[int], rows: Sequence[int], positions: Sequence[int], wanted: Sequence[int] | None = None
    ) -> Tensor:
        """The next tokens, rows ascending: ids, rows, positions, N each -> hidden states after the last norm (N, C).

        `wanted`: indices of n tokens; only their states are returned, (n, C), and the last block does less.
        """
        row, position = np.asarray(rows, dtype=np.int64), np.asarray(positions, dtype=np.int64)
        starts = np.flatnonzero(np.diff(row, prepend=-1))  # where each row's tokens begin
        ends = np.append(starts[1:], len(row))
        self._settle(row[starts], position[starts], position[ends - 1] + 1)
        order = np.argsort(self._capacity[row], kind="stable")  # tokens of one pool stand together
        row, position, token = row[order], position[order], np.asarray(ids, dtype=np.int64)[order]
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        chosen = places if wanted is None else places[np.asarray(wanted, dtype=np.int64)]
        tokens = _Tokens(self, row, position)
        attend, attend_last = tokens.attention(np.arange(len(row)), 3), tokens.attention(chosen, 1)

        n_chosen = len(chosen)
        token, position, chosen = (_padded(array) for array in (token, position, chosen))
        token_t, position_t, chosen_t = (moved(a, self.device) for a in (token, position, chosen))
        x = F.embedding(token_t, self.table)  # (N, C)
        turns = None
        if self.model.wpe is not None:
            x = x + self.model.wpe(position_t)
        else:
            turns = torch.complex(self.model.cos[position_t], self.model.sin[position_t])[:, None]  # (N, 1, D / 2)
        C = x.shape[1]
        for number, layer in enumerate(self.layers):
            h = layer.norm_1(x)
            if number < len(self.layers) - 1:
                q = layer.qkv(h, 0, 3 * C)
                layer.rotate(q[:, : 2 * C], turns)
                kv = q[:, C:]
            else:
                kv = layer.qkv(h, C, 3 * C)
                layer.rotate(kv[:, :C], turns)
                x, attend = x[chosen_t], attend_last
                q = layer.qkv(h[chosen_t], 0, C)
                layer.rotate(q, None if turns is None else turns[chosen_t])
            tokens.write(number, kv)
            x = x + layer.proj(attend(number, q, len(x)))
            x = x + layer.mlp(layer.norm_2(x))
        return self.model.ln_f(x[:n_chosen])


def _padded(array: np.ndarray) -> np.ndarray:
    """(n,) -> with zeros behind it up to a multiple of TOKENS_MULTIPLE"""
    return np.pad(array, (0, -len(array) % TOKENS_MULTIPLE))


class _Pool:
    """Rows with room for `capacity` positions each, in slots 0 to len(rows) - 1."""

    def __init__(self, model: GPT, n_rows: int, capacity: int, dtype: torch.dtype, device: torch.device):
        config = model.config
        self.capacity = capacity
        n_rows += -n_rows % ROWS_MULTIPLE
        shape = (config.n_layer, 2, n_rows, config.n_head, capacity, config.n_embd // config.n_head)
        # Zeros: what is masked gets the weight 0, and 0 times the nan that may lie in unwritten memory is nan.
        if device.type == "cpu":  # numpy's zeros take no memory before they are written
            n_bytes = int(np.prod(shape)) * dtype.itemsize
            self.data = torch.from_numpy(np.zeros(n_bytes, dtype=np.uint8)).view(dtype).view(shape)
        else:
            self.data = torch.zeros(shape, dtype=dtype, device=device)  # (L, 2, B, H, S, D): keys, values
        self.wide = _wide(self.data)
        self.rows = np.zeros(0, dtype=np.int64)  # of the decoder, by slot

    def add(self, rows: np.ndarray) -> np.ndarray:
        """Their slots."""
        slots = len(self.rows) + np.arange(len(rows))
        self.rows = np.concatenate([self.rows, rows])
        return slots

    def remove(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows from the end fill the gaps: those rows, and their new slots."""
        left = len(self.rows) - len(slots)
        gone = np.zeros(len(self.rows), dtype=bool)
        gone[slots] = True
        gaps, movers = np.flatnonzero(gone[:left]), left + np.flatnonzero(~gone[left:])
        if len(gaps):
            self.copy(gaps, self, movers)
        self.rows[gaps] = self.rows[movers]
        self.rows = self.rows[:left]
        return self.rows[gaps], gaps

    def copy(self, slots: np.ndarray, other: _Pool, other_slots: np.ndarray) -> None:
        to, source = (moved(array, self.data.device) for array in (slots, other_slots))
        n = min(self.capacity, other.capacity)
        self.wide[..., :n, :].index_copy_(2, to, other.wide[..., :n, :].index_select(2, source))


def _wide(x: Tensor) -> Tensor:
    """Copying by index goes number by number on a CPU: 5,120 vectors of 64 bfloat16 take 0.19 ms, as 16 bytes 0.08."""
    return x.view(torch.complex128) if x.device.type == "cpu" and x.shape[-1] * x.itemsize % 16 == 0 else x


class _Tokens:
    """The new tokens of one pass, pool by pool."""

    def __init__(self, decoder: PackedDecoder, row: np.ndarray, position: np.ndarray):
        self.decoder, self.position = decoder, position
        self.slot, capacity = decoder._slot[row], decoder._capacity[row]
        self.n_head = decoder.model.config.n_head
        self.parts: list[tuple[_Pool, int, int, Tensor]] = []  # pool, first and last token, where to write
        for size in np.unique(capacity).tolist():
            begin, end = np.searchsorted(capacity, [size, size + 1]).tolist()
            pool = decoder._pools[size]
            vector = (self.slot[begin:end, None] * self.n_head + np.arange(self.n_head)) * size
            vector += position[begin:end, None]  # (n, H) among the vectors of a layer's keys
            vector = np.stack([vector, vector + pool.data[0, 0].numel() // pool.data.shape[-1]], axis=1)
            self.parts.append((pool, begin, end, moved(vector.reshape(-1), decoder.device)))

    def write(self, layer: int, kv: Tensor) -> None:
        """kv (N, 2 C): keys and values of the new tokens"""
        for pool, begin, end, vectors in self.parts:
            D = pool.data.shape[-1]
            target, source = pool.data[layer].view(-1, D), kv[begin:end].reshape(-1, D)
            _wide(target).index_copy_(0, vectors, _wide(source))

    def attention(self, chosen: np.ndarray, n_parts: int) -> _Attention:
        """For these tokens, whose queries are the first of `n_parts` vectors a head."""
        calls: list[_Call] = []
        n_head, device = self.n_head, self.decoder.device
        first = np.zeros(len(chosen), dtype=np.int64)  # where among the results the token's first head is
        step = np.zeros(len(chosen), dtype=np.int64)  # from one head to the next
        n_results = 0
        order = np.argsort(chosen, kind="stable")
        edges = np.searchsorted(chosen[order], [end for _, _, end, _ in self.parts]).tolist()
        for (pool, *_), begin, end in zip(self.parts, [0, *edges], edges, strict=False):
            mine = order[begin:end]  # indices in `chosen`
            slot = self.slot[chosen[mine]]
            starts = np.flatnonzero(np.diff(slot, prepend=-1))
            counts = np.diff(starts, append=len(slot))
            if len(counts) == 0:
                continue
            column = np.arange(len(slot)) - np.repeat(starts, counts)
            is_long = np.repeat(counts > FEW_QUERIES, counts)
            for part in (~is_long, is_long):
                if not part.any():
                    continue
                tokens, index, rows = mine[part], slot[part], None
                if is_long.any():
                    rows, index = np.unique(index, return_inverse=True)
                    rows = np.pad(rows, (0, -len(rows) % ROWS_MULTIPLE))
                n = len(pool.rows) + -len(pool.rows) % ROWS_MULTIPLE if rows is None else len(rows)
                T = int(counts.max() if rows is None else column[part].max() + 1)
                place = index * T + column[part]
                query, position = np.zeros(n * T, dtype=np.int64), np.zeros(n * T, dtype=np.int64)
                query[place] = tokens * n_parts * n_head
                position[place] = self.position[chosen[tokens]]  # padding looks at position 0; nobody reads it
                calls.append(_Call(pool, rows, query.reshape(n, 1, T), position.reshape(n, 1, T), self.decoder))
                first[tokens] = n_results + index * n_head * T + column[part]
                step[tokens] = T
                n_results += n * n_head * T
        vectors = first[:, None] + step[:, None] * np.arange(n_head)
        return _Attention(calls, moved(vectors.reshape(-1), device), n_head)


class _Attention:
    def __init__(self, calls: list[_Call], vectors: Tensor, n_head: int):
        self.calls, self.vectors, self.n_head = calls, vectors, n_head

    def __call__(self, layer: int, q: Tensor, n: int) -> Tensor:
        """q (N, C or more) -> (n, C), zeros behind the chosen tokens"""
        results = [call(layer, q) for call in self.calls]
        y = torch.cat(results) if len(results) > 1 else results[0]  # (vectors, D)
        y = y.index_select(0, self.vectors).view(-1, self.n_head * y.shape[-1])
        return F.pad(y, (0, 0, 0, n - len(y)))


class _Call:
    """Attention of the rows of a pool, or of some of them, padded to the same number of queries."""

    def __init__(
        self,
        pool: _Pool,
        rows: np.ndarray | None,  # slots; None: all
        query: np.ndarray,  # (n, 1, T) the vector that is the first head's query
        position: np.ndarray,  # (n, 1, T)
        decoder: PackedDecoder,
    ):
        self.pool, device, n_head = pool, decoder.device, decoder.model.config.n_head
        self.rows = None if rows is None else moved(rows, device)
        self.n_rows, _, self.T = query.shape
        self.query = moved((query + np.arange(n_head)[:, None]).reshape(-1), device)
        places = torch.arange(pool.capacity, device=device)
        mask = places <= moved(position[..., None], device)  # (n, 1, T, S)
        if self.T <= FEW_QUERIES:  # as numbers to be added, (n H, T, S)
            mask = torch.where(mask, 0.0, MASKED).to(decoder.dtype).expand(-1, n_head, -1, -1).flatten(0, 1)
        self.mask = mask

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        """q (N, C or more) -> (n H T, D)"""
        H, S, D = self.pool.data.shape[-3:]
        data = self.pool.data[layer]  # (2, B, H, S, D)
        keys, values = data[:, : self.n_rows] if self.rows is None else data.index_select(1, self.rows)
        q = q.view(-1, D).index_select(0, self.query).view(-1, self.T, D)  # (n H, T, D)
        if self.T > FEW_QUERIES:
            q = q.view(-1, H, self.T, D)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask).reshape(-1, D)
        scores = torch.baddbmm(self.mask, q, keys.reshape(-1, S, D).transpose(1, 2), alpha=D**-0.5)  # (n H, T, S)
        return torch.bmm(scores.softmax(dim=-1), values.reshape(-1, S, D)).view(-1, D)


class _Layer:
    """The weights of a block as decoding uses them, in its dtype.

    The gain of an RMSNorm is part of the matrix that follows. Pairs that rotate are neighbours, so that a rotation is
    one complex product: 0.15 ms for 640 tokens of 8 heads where halves take 0.30.
    """

    def __init__(self, block: Block, dtype: torch.dtype):
        attention, mlp = block.attn, block.mlp
        self.n_head, self.qk_norm, self.gated, self.dtype = attention.n_head, attention.qk_norm, mlp.gated, dtype
        self.norms = [None if isinstance(n, torch.nn.RMSNorm) else n for n in (block.ln_1, block.ln_2)]
        gains = [n.weight.float() if isinstance(n, torch.nn.RMSNorm) else None for n in (block.ln_1, block.ln_2)]
        self._qkv = _weights(attention.c_attn, dtype, gains[0])
        self._proj = _weights(attention.c_proj, dtype)
        self._fc, self._out = _weights(mlp.c_fc, dtype, gains[1]), _weights(mlp.c_proj, dtype)
        weight, bias = self._qkv
        C = weight.shape[1]
        D = C // self.n_head
        pairs = torch.arange(D).view(2, D // 2).T.reshape(-1) if D % 2 == 0 else torch.arange(D)
        rows = (torch.arange(0, 2 * C, D)[:, None] + pairs).view(-1)
        rows = torch.cat([rows, torch.arange(2 * C, 3 * C)]).to(weight.device)
        self._qkv = weight[rows], None if bias is None else bias[rows]

    def norm_1(self, x: Tensor) -> Tensor:
        return self._norm(x, 0)

    def norm_2(self, x: Tensor) -> Tensor:
        return self._norm(x, 1)

    def _norm(self, x: Tensor, k: int) -> Tensor:
        norm = self.norms[k]
        if norm is not None:
            return norm(x).to(self.dtype)
        return _rms_normed(x, 1e-5).to(self.dtype)

    def qkv(self, h: Tensor, begin: int, end: int) -> Tensor:
        """(n, C) -> (n, end - begin): those rows of query, key and value"""
        weight, bias = self._qkv
        return F.linear(h, weight[begin:end], None if bias is None else bias[begin:end])

    def rotate(self, y: Tensor, turns: Tensor | None) -> None:
        """y (n, C or 2 C): each pair is turned by its position, in place"""
        n, width = y.shape
        D = self._qkv[0].shape[1] // self.n_head
        if not self.qk_norm and turns is None:
            return
        vectors = y.float().view(n, -1, D)
        if self.qk_norm:
            vectors = _rms_normed(vectors, torch.finfo(torch.float32).eps)
        if turns is not None:
            pairs = torch.view_as_complex(vectors.view(n, -1, D // 2, 2))
            vectors = torch.view_as_real(pairs * turns)
        y.copy_(vectors.view(n, width))

    def proj(self, y: Tensor) -> Tensor:
        return F.linear(y, *self._proj)

    def mlp(self, h: Tensor) -> Tensor:
        h = F.linear(h, *self._fc)
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            return F.linear(F.silu(gate).mul_(value), *self._out)
        return F.linear(F.gelu(h, approximate="tanh"), *self._out)


def _rms_normed(x: Tensor, eps: float) -> Tensor:
    """In two passes over x; F.rms_norm makes five on a CPU, and one on a GPU."""
    if x.is_cuda:
        return F.rms_norm(x, (x.shape[-1],), eps=eps)
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x * norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _weights(linear: torch.nn.Linear, dtype: torch.dtype, gain: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    weight = linear.weight if gain is None else linear.weight.float() * gain
    return weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype)


_LAYERS: weakref.WeakKeyDictionary[GPT, tuple[Tensor, dict[torch.dtype, list[_Layer]]]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _layers(model: GPT, dtype: torch.dtype) -> list[_Layer]:
    """Made anew when the model has made its table anew, since its weights may be others then."""
    table, kept = _LAYERS.get(model, (None, {}))
    if table is not model.table():
        table, kept = model.table(), {}
        _LAYERS[model] = table, kept
    if dtype not in kept:
        kept[dtype] = [_Layer(block, dtype) for block in model.blocks if isinstance(block, Block)]
    return kept[dtype]
