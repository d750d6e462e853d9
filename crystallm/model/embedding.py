"""One table of token vectors for input and output, in which numbers know their value.

A number's vector is a small network of features of its value plus a vector of its class, so 0.249 and 0.250 are
neighbours before the first step of training, and a length that never occurred still has a sensible vector. Coordinates
have a vector of their own besides, which starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystallm.elements import element_table
from crystallm.model.tokens import TokenSpec

N_FEATURES = 64


def number_features(name: str, values: np.ndarray) -> np.ndarray:
    """(n,) -> (n, N_FEATURES) float32, each within about [-1, 1].

    Sines and cosines at periods from the whole range down to about twice the step, and the value itself, linear and
    logarithmic. Coordinates repeat with period 1, so theirs are whole harmonics and nothing else.
    """
    if name == "coordinate":
        # All symmetry planes and thirds, quarters, ... up to twelfths; then finer ones, down to two steps of the grid.
        harmonics = np.concatenate([np.arange(1, 13), np.round(np.geomspace(12, 480, N_FEATURES // 2 - 11))[1:]])
        periods, scale, extra = 1 / harmonics, 1.0, []
    else:
        scale = {"integer": 1000.0, "length": 100.0, "angle": 180.0}.get(name, 100.0)
        finest = {"integer": 2.5, "length": 0.05, "angle": 0.25}.get(name, 0.05)
        periods = np.geomspace(finest, 2 * scale, (N_FEATURES - 4) // 2)
        if name == "angle":
            periods = 360 / np.unique(np.round(360 / periods))  # whole divisions, so that 60, 90 and 120 stand out
        signed_log = np.sign(values) * np.log1p(np.abs(values)) / np.log1p(scale)
        extra = [values / scale, signed_log, np.abs(values) / scale, signed_log**2]
    phase = 2 * np.pi * values[:, None] / periods  # (n, n_periods)
    features = np.concatenate([np.sin(phase), np.cos(phase), *(e[:, None] for e in extra)], axis=1)
    padding = np.zeros((len(values), N_FEATURES - features.shape[1]))
    return np.concatenate([features, padding], axis=1).astype(np.float32)


def element_features() -> np.ndarray:
    """(118, n) float32 by atomic number: each property with mean 0 and variance 1 (0: unknown), place in the table."""
    table = element_table()
    properties = [name for name in table if name not in ("period", "group", "block")]
    values = np.stack([table[name].astype(np.float64) for name in properties], axis=1)
    places = [np.equal.outer(table[name], np.unique(table[name])) for name in ("period", "group", "block")]
    scaled = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
    return np.concatenate([np.nan_to_num(scaled), *places], axis=1).astype(np.float32)


class ElementEmbedding(nn.Module):
    """What is added to the vectors of the tokens that name elements: a small network of what chemistry knows."""

    features: Tensor

    def __init__(self, atomic_numbers: np.ndarray, n_embd: int, n_hidden: int, std: float):
        super().__init__()
        features = element_features()
        self.register_buffer("features", torch.from_numpy(features[atomic_numbers - 1]), persistent=False)
        self.hidden = nn.Linear(features.shape[1], n_hidden)
        self.out = nn.Linear(n_hidden, n_embd, bias=False)
        # About 13 features of size 1 and three that are 1: inputs of the GELU of size 1, outputs of 0.65.
        nn.init.normal_(self.hidden.weight, std=0.25)
        nn.init.zeros_(self.hidden.bias)
        nn.init.normal_(self.out.weight, std=std / (0.65 * n_hidden**0.5))

    def forward(self) -> Tensor:
        """() -> (n, n_embd)"""
        return self.out(F.gelu(self.hidden(self.features), approximate="tanh"))


class NumberEmbedding(nn.Module):
    """Vectors of all numbers of one class."""

    features: Tensor

    def __init__(self, name: str, values: np.ndarray, n_embd: int, n_hidden: int, own: bool, std: float):
        super().__init__()
        self.register_buffer("features", torch.from_numpy(number_features(name, values)), persistent=False)
        self.hidden = nn.Linear(N_FEATURES, n_hidden)
        self.out = nn.Linear(n_hidden, n_embd, bias=False)
        self.class_vector = nn.Parameter(torch.empty(n_embd))
        # Half the features' squares are about 1/2 each: inputs of the GELU are of size 1, and its outputs 0.65.
        nn.init.normal_(self.hidden.weight, std=(2 / N_FEATURES) ** 0.5)
        nn.init.zeros_(self.hidden.bias)
        nn.init.normal_(self.out.weight, std=std / (0.65 * n_hidden**0.5))
        nn.init.normal_(self.class_vector, std=std)
        # 0.333 and 0.500 are unlike their neighbours in a way that no smooth function of the value shows.
        self.own = nn.Parameter(torch.zeros(len(values), n_embd)) if own else None

    def activations(self) -> Tensor:
        """() -> (n, n_hidden)"""
        return F.gelu(self.hidden(self.features), approximate="tanh")

    def forward(self) -> Tensor:
        """() -> (n, n_embd)"""
        vectors = self.out(self.activations()) + self.class_vector
        return vectors if self.own is None else vectors + self.own.to(vectors.dtype)


class Table:
    """Token vectors of one training step: the plain ones and those of the number classes in use, as blocks."""

    def __init__(self, matrix: Tensor, row: Tensor, blocks: dict[str, Tensor]):
        self.matrix = matrix  # (n_rows, n_embd)
        self.row = row  # (vocab_size,) a token's row; 0 for classes not in use, which are not looked up
        self.blocks = blocks  # class -> (n, n_embd), parts of the matrix

    def __call__(self, ids: Tensor) -> Tensor:
        """(...) -> (..., n_embd)"""
        return F.embedding(self.row[ids], self.matrix)

    def of_tokens(self, tokens: Tensor, block: str | None) -> Tensor:
        """Vectors of a group's tokens (n, n_embd); `block` names the class that the group is, if it is one."""
        return self.blocks[block] if block else F.embedding(self.row[tokens], self.matrix)


class TokenEmbedding(nn.Module):
    """Parameters: one vector a plain token, one small network a class of numbers."""

    element_rows: Tensor

    def __init__(
        self,
        spec: TokenSpec,
        n_embd: int,
        n_hidden: int,
        by_value: bool,
        own: Sequence[str] = (),  # classes whose numbers add a vector of their own each
        elements: bool = False,  # vectors of elements start from their chemistry
        std: float = 0.02,
    ):
        super().__init__()
        numbers = spec.numbers if by_value else {}
        claimed = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in numbers.values())])
        if len(np.unique(claimed)) != len(claimed):
            raise ValueError(f"a token is in two of the number classes {list(numbers)}: its value would be unclear")
        plain = np.setdiff1d(np.arange(spec.vocab_size), claimed)
        self.vocab_size = spec.vocab_size
        self.ids = {"": plain, **{name: ids for name, (ids, _) in numbers.items()}}
        self.plain = nn.Parameter(torch.empty(len(plain), n_embd))
        nn.init.normal_(self.plain, std=std)
        self.numbers = nn.ModuleDict(
            {
                name: NumberEmbedding(name, values, n_embd, n_hidden, name in own, std)
                for name, (_, values) in numbers.items()
            }
        )
        ids, atomic_numbers = spec.elements
        self.elements = ElementEmbedding(atomic_numbers, n_embd, n_hidden, std) if elements and len(ids) else None
        self.register_buffer("element_rows", torch.from_numpy(np.searchsorted(plain, ids)), persistent=False)
        self._rows: dict[frozenset[str], Tensor] = {}

    def table(self, classes: Iterable[str] | None = None) -> Table:
        """The vectors of all plain tokens and of the number classes named (default: all)."""
        wanted = frozenset(self.numbers if classes is None else classes) & frozenset(self.numbers)
        blocks = {name: self.numbers[name]() for name in self.numbers if name in wanted}
        # Under autocast the networks give its dtype: so be it with the plain vectors, too.
        plain: Tensor = self.plain.to(next(iter(blocks.values())).dtype) if blocks else self.plain
        if self.elements is not None:
            plain = plain.index_add(0, self.element_rows, self.elements().to(plain.dtype))
        return Table(torch.cat([plain, *blocks.values()]), self._row(wanted), blocks)

    def factors(self, tokens: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """A (n, n_hidden), W (n_embd, n_hidden): vectors of these tokens are A @ W.T and a vector that they share.

        None where that is not so: for other tokens than all of one number class, and if they have vectors of their own.
        """
        for name, module in self.numbers.items():
            assert isinstance(module, NumberEmbedding)
            if module.own is None and np.array_equal(tokens, self.ids[name]):
                return module.activations(), module.out.weight
        return None

    def forward(self) -> Tensor:
        """() -> (vocab_size, n_embd), in the order of ids"""
        table = self.table()
        return table.matrix[table.row]

    def _row(self, classes: frozenset[str]) -> Tensor:
        row = self._rows.get(classes)
        if row is None or row.device != self.plain.device:
            order = np.concatenate([self.ids[name] for name in ("", *(n for n in self.numbers if n in classes))])
            rows = np.zeros(self.vocab_size, dtype=np.int64)
            rows[order] = np.arange(len(order))
            row = self._rows[classes] = torch.from_numpy(rows).to(self.plain.device)
        return row
