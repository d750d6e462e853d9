"""A GPT decoder over token ids, trained on what the grammar leaves open.

One class, two shapes of block: RMSNorm, rotary positions and SwiGLU (default), or GPT-2's LayerNorm, learned
positions and GELU, in which released CrystaLLM weights run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystallm.model.attention import causal_attention
from crystallm.model.batch import Batch, make_batch
from crystallm.model.embedding import Table, TokenEmbedding
from crystallm.model.tokens import LossKind, TokenSpec


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    block_size: int = 512  # longest structure, in tokens
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    position: Literal["rotary", "learned"] = "rotary"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    qk_norm: bool = False
    dropout: float = 0.0  # on the residual branches; inside attention it would halve training speed on a CPU
    number_embedding: bool = True  # vectors of numbers from their values; False: one free vector a token
    number_hidden: int = 64  # width of the network that makes them
    number_own: tuple[str, ...] = ("coordinate",)  # classes whose numbers add a free vector each
    element_features: bool = False  # vectors of elements: a network of their properties, and a free vector each
    # Softmax over what the grammar allows, over the whole vocabulary, or over what the sampler's constraints allow
    loss: LossKind = "grammar"
    # Width, in steps of the grid, of the Gaussian that replaces a number as the target; 0: the number alone.
    soft_coordinate: float = 0.0
    soft_length: float = 0.0
    soft_angle: float = 0.0
    # How much the choices of a slot weigh in what is minimised, by its name; 1 where none is given. What is reported
    # and what log_likelihood gives stay unweighted.
    slot_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be divisible by n_head (={self.n_head}), got {self.n_embd}")
        if self.position == "rotary" and (self.n_embd // self.n_head) % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.n_embd // self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.loss == "constrained" and max(self.soft_coordinate, self.soft_length, self.soft_angle) > 0:
            raise ValueError("soft targets reach tokens that loss='constrained' rules out; choose one of the two")

    @property
    def n_mlp(self) -> int:
        """Inner width; 8/3 for SwiGLU's three matrices costs what GELU's two cost at 4."""
        return 4 * self.n_embd if self.mlp == "gelu" else -(-8 * self.n_embd // (3 * 64)) * 64

    def soft_width(self, number_class: str) -> float:
        return float(getattr(self, f"soft_{number_class}", 0.0))


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch, as sums and what each is to be divided by (`GPT.loss_names` names the parts)."""

    total: Tensor  # () nats to be minimised: the sum over chosen tokens
    weight: int  # number of chosen tokens
    structures: int
    sums: Tensor  # (n_parts,) float32, without gradient
    counts: Tensor  # (n_parts,) float32

    @property
    def mean(self) -> Tensor:
        """Mean nats per structure ()."""
        return self.total / self.counts[0]


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.qk_norm = config.n_head, config.qk_norm
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        qk, v = qkv.split([2, 1])
        if self.qk_norm:
            qk = F.rms_norm(qk, (qk.shape[-1],))
        if rotation is not None:
            qk = rotate(qk, *rotation)
        (q, k), v = qk.unbind(), v.squeeze(0)  # (B, H, T, D) each
        y = causal_attention(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.c_fc = nn.Linear(config.n_embd, config.n_mlp * (2 if self.gated else 1), bias=config.bias)
        self.c_proj = nn.Linear(config.n_mlp, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            return self.c_proj(F.silu(gate) * value)
        return self.c_proj(F.gelu(h, approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1, self.attn = make_norm(config), Attention(config)
        self.ln_2, self.mlp = make_norm(config), MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + F.dropout(self.attn(self.ln_1(x), rotation), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """`spec` says which tokens are numbers and where the grammar leaves a choice."""

    cos: Tensor
    sin: Tensor
    slot_weights: Tensor

    def __init__(self, config: GPTConfig, spec: TokenSpec):
        super().__init__()
        self.config, self.spec = config, spec
        self.embedding = TokenEmbedding(
            spec,
            config.n_embd,
            config.number_hidden,
            config.number_embedding,
            config.number_own,
            config.element_features,
        )
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = make_norm(config)
        cos, sin = rotation_tables(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("cos", cos, persistent=False)  # (block_size, D / 2)
        self.register_buffer("sin", sin, persistent=False)
        self._group_block = [self._as_block(tokens) for tokens in spec.group_tokens]
        self._group_classes = [spec.classes_among(tokens) for tokens in spec.group_tokens]
        for group, tokens in enumerate(spec.group_tokens):
            self.register_buffer(f"group_{group}", torch.from_numpy(np.asarray(tokens)), persistent=False)
        if unknown := set(config.slot_weights) - set(spec.slot_names):
            names = ", ".join(spec.slot_names)
            raise ValueError(f"slot_weights: no slot {min(unknown)!r}; there are {names}")
        weights = [config.slot_weights.get(name, 1.0) for name in spec.slot_names]
        self.register_buffer("slot_weights", torch.tensor(weights), persistent=False)  # (n_slots,)
        self.loss_names = ("nats_per_structure", "nats_per_token", *spec.slot_names)
        self._table: Tensor | None = None
        self._init_weights()

    def _as_block(self, tokens: np.ndarray) -> str | None:
        """The number class that a group's tokens are, if they are one."""
        for name in self.embedding.numbers:
            if np.array_equal(tokens, self.embedding.ids[name]):
                return name
        return None

    def _init_weights(self) -> None:
        """GPT-2's: 0.02, and less on what is added to the residual stream, by the number of additions."""
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layer) ** 0.5)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if self.wpe is not None:
            nn.init.normal_(self.wpe.weight, std=0.02)

    @property
    def n_block_parameters(self) -> int:
        return sum(p.numel() for p in self.blocks.parameters())

    def table(self) -> Tensor:
        """Token vectors (vocab_size, n_embd), input and output: the logits of tokens `t` are `hidden @ table[t].T`.

        Kept while the model is in evaluation mode and no gradient is asked for.
        """
        if self.training or torch.is_grad_enabled():
            return self.embedding()
        if self._table is None:
            self._table = self.embedding()
        return self._table

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) -> hidden states after the last norm (B, T, n_embd). With a cache: sample/decoder.py."""
        return self.ln_f(self.hidden(F.embedding(ids, self.table())))

    def hidden(self, x: Tensor) -> Tensor:
        """Token vectors (B, T, C) -> residual stream before the last norm (B, T, C)"""
        T, block_size = x.shape[1], self.config.block_size
        if block_size < T:
            raise ValueError(f"{T} tokens exceed block_size={block_size}")
        x = x.float() if torch.is_autocast_enabled(x.device.type) else x  # the residual stream stays in float32
        rotation = None
        if self.wpe is not None:
            x = x + self.wpe.weight[:T]
        else:
            dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
            rotation = self.cos[:T].to(dtype), self.sin[:T].to(dtype)  # (T, D / 2) each
        for block in self.blocks:
            x = block(x, rotation)
        return x

    def loss(self, batch: Batch) -> Loss:
        """Nats of the chosen tokens under the softmax over what the grammar allowed there."""
        nats, objective = self._choice_nats(batch)
        objective = nats if objective is None else objective
        if self.config.slot_weights:
            objective = objective * self.slot_weights[batch.slots]
        total = objective.sum()
        with torch.no_grad():
            slots = torch.zeros(len(self.spec.slot_names), device=nats.device).index_add_(0, batch.slots, nats)
            ones = torch.ones_like(nats)
            counts = torch.zeros_like(slots).index_add_(0, batch.slots, ones)
            whole = nats.sum()
            sums = torch.cat([torch.stack([whole, whole]), slots])
            # Filled on the device: copying them there would make the host wait for all that it has asked of a GPU.
            denominators = [counts.new_full((1,), n) for n in (batch.n_structures, batch.n_tokens)]
            counts = torch.cat([*denominators, counts])
        return Loss(total, len(batch.targets), batch.n_structures, sums, counts)

    @torch.no_grad()
    def log_likelihood(
        self, batch: Batch | Sequence[np.ndarray], prompt_lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p under the grammar softmax, in nats: per structure (B,), and per token (B, T), 0 where given or forced.

        Counted from the first token after the prompt; `prompt_lengths` defaults to all up to `data_`.
        """
        if not isinstance(batch, Batch):
            batch = make_batch(batch, self.spec, prompt_lengths).to(self.cos.device)
        nats, _ = self._choice_nats(batch)
        tokens = torch.zeros(batch.ids.numel(), device=nats.device).index_add_(0, batch.positions + 1, -nats)
        tokens = tokens.view(batch.ids.shape)  # (B, T)
        return tokens.sum(dim=1), tokens

    def _choice_nats(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(n,) nats of the chosen tokens, and (n,) of the soft targets if there are any."""
        classes = batch.classes.union(*(self._group_classes[group] for group, _ in batch.groups))
        table = self.embedding.table(classes)
        x = self.hidden(table(batch.ids))  # (B, T, C)
        x = self.ln_f(x.flatten(0, 1).index_select(0, batch.positions))  # (n, C)
        nats, objective, soft = [], [], False
        counts = [count for _, count in batch.groups]
        for number, (states, targets) in enumerate(zip(x.split(counts), batch.targets.split(counts), strict=True)):
            group = batch.groups[number][0]
            logits = self._group_logits(states, table, group)
            if batch.masks and (mask := batch.masks[number]) is not None:
                logits = logits.masked_fill(~mask, -torch.inf)
            nats.append(F.cross_entropy(logits, targets, reduction="none"))
            width = self.config.soft_width(self._group_block[group] or "")
            if width > 0 and self.training:
                circular = self._group_block[group] == "coordinate"
                objective.append(soft_cross_entropy(logits, targets, width, circular))
                soft = True
            else:
                objective.append(nats[-1])
        return torch.cat(nats), torch.cat(objective) if soft else None

    def _group_logits(self, x: Tensor, table: Table, group: int) -> Tensor:
        """(n, C) -> (n, tokens of the group) float32"""
        rows = table.of_tokens(getattr(self, f"group_{group}"), self._group_block[group])
        return F.linear(x, rows).float()

    def train(self, mode: bool = True) -> GPT:
        self._table = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> GPT:
        self._table = None
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._table = None
        return super().load_state_dict(*args, **kwargs)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=1e-5)


def rotation_tables(n_positions: int, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles that turn position p, (n_positions, head_width / 2) each (RoFormer, eq. 15)."""
    frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (2, B, H, T, D), cos and sin ([B,] 1, T, D / 2) -> x turned by its positions"""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, width: float, circular: bool) -> Tensor:
    """Cross-entropy to a Gaussian of `width` steps around each target: (n, K), (n,) -> (n,)

    Circular targets wrap around; others lose what would fall off the ends, and are normalised again.
    """
    n_values = logits.shape[-1]
    reach = max(1, round(3 * width))
    offsets = torch.arange(-reach, reach + 1, device=logits.device)
    weights = torch.exp(-0.5 * (offsets / width) ** 2).expand(len(targets), -1)  # (n, 2 reach + 1)
    index = targets[:, None] + offsets
    if circular:
        index = index % n_values
    else:
        weights = weights * ((index >= 0) & (index < n_values))
        index = index.clamp(0, n_values - 1)
    log_probs = F.log_softmax(logits, dim=-1).gather(1, index)
    return -(weights * log_probs).sum(dim=1) / weights.sum(dim=1)
