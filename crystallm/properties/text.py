"""A small transformer over the words of a description, trained with the predictor: text in, vectors of its words out.

The vocabulary is fixed here, so that a checkpoint needs no file of it: elements, space groups, number kinds, the words
of descriptions, and buckets into which all other words fall by a hash. A number is one token that knows its value, and
its unit says what kind it is. A formula becomes its elements and their counts.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystallm.model.attention import masked_attention
from crystallm.properties.description import Description
from crystallm.properties.encoding import Encoder, Encoding
from crystallm.space_groups import space_group, space_group_symbols
from tokenizer.elements import SYMBOLS

UNITS = {"Å3": "volume", "Å³": "volume", "Å^3": "volume", "g/cm3": "density", "g/cm³": "density", "Å": "length"}
UNITS |= {"°": "angle"}
NUMBER_KINDS = ("integer", "decimal", "signed", "length", "volume", "density", "angle")
LETTERS = "abcdefghijklmnopqrstuvwxyzA"  # of Wyckoff positions
_SIGNS = ". ; : [ ] - + / = % < > ? !"
SIGNS = tuple(_SIGNS.split())
N_BUCKETS = 512
N_PERIODS = 24  # of the waves in which a number's value is given
# They say nothing that the other words leave open, and attention costs less without them.
_SKIPPED = """
the a an of is are it its has have and with by in on there ( ) , ' "
"""
SKIPPED = frozenset(_SKIPPED.split())
# In this order for ever: a new word goes to the end, or models trained before read other words.
_WORDS = """
    or to at from for as than per no not number space group cell crystal system structure reduced formula primitive
    conventional element elements single pure compound consists contains built among type prototype isostructural
    crystallises symmetry density volume each atom atoms takes measures edges angles edge angle length holds distinct
    site sites electronegativity electronegativities differ difference largest neighbour neighbours bonded around
    coordination coordinate fold position positions c b alpha beta gamma triclinic monoclinic orthorhombic tetragonal
    trigonal hexagonal cubic rhombohedral alkali alkaline earth metal post-transition transition metalloid nonmetal
    chalcogen halogen noble gas lanthanide actinide rare double rock salt zincblende zinc blende wurtzite fluorite
    antifluorite perovskite antiperovskite spinel binary rutile anatase brookite diamond graphite fcc bcc hcp simple
    garnet pyrochlore heusler half pyrite corundum ilmenite olivine calcite delafossite laves layered oxide nitride
    carbide sulfide sulphide selenide telluride fluoride chloride bromide iodide phosphide arsenide hydride boride
    silicide halide alloy intermetallic metallic band gap ev gpa insulator semiconductor ionic covalent magnetic polar
    centrosymmetric octahedral octahedra tetrahedral tetrahedra corner corner-sharing edge-sharing face-sharing plane
    planar linear trigonal-planar square bipyramidal pyramidal cuboctahedra geometry distorted equivalent inequivalent
    bond bonds distance distances lengths shorter longer ranging spread all one two three four five six seven eight
    nine ten eleven twelve form mixture share corners faces framework sheet sheets chain chains dimensional
    zero-dimensional one-dimensional two-dimensional three-dimensional molecule molecules cluster clusters
    body-centered face-centered derived this that which these samarium lonsdaleite tin indium arsenic selenium uranium
    black phosphorus litharge cinnabar tungsten boron gallium tenorite niobium monoxide covellite lithium hydroxide
    cuprite brucite quartz cristobalite calcium c14 c15 marcasite barium aluminium baddeleyite silicon disulfide
    paratellurite calomel red mercury skutterudite filled tysonite rhenium trioxide cementite vanadium trifluoride
    tetraiodide tetrafluoride lanthanum bixbyite antibixbyite bismuth pentoxide molybdenum gadolinium ferrite niobate
    dolomite chalcopyrite stannite kesterite sulvanite scheelite zircon forsterite elpasolite a15 max sodium azide
    potassium bifluoride solid carbon dioxide first second third fourth high low temperature phase material hard soft
    stable wide narrow small large l1_2 l1_0
"""
WORDS = tuple(_WORDS.split())

_UNIT = "|".join(re.escape(unit) for unit in UNITS)
_TOKEN = re.compile(
    rf"""(?P<multiplicity>\d+)(?P<letter>[a-zA])(?!\w)
    |(?P<number>(?:(?<![\w)])[+\-−])?\d+(?:\.\d+)?)
     (?:\s?(?P<unit>{_UNIT})(?!\w)|(?=\sto\s\d+(?:\.\d+)?\s?(?P<range>{_UNIT})))?
    |(?P<word>[^\W\d_][\w/\-]*)
    |(?P<sign>\S)""",
    re.VERBOSE,
)
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*)+")
_FORMULA_PART = re.compile(r"([A-Z][a-z]?)(\d*)")
_SENTENCE_ENDS = frozenset(".!?")


class Piece(NamedTuple):
    id: int
    value: float  # of a number; nan for what is none
    start: int  # character span, here from the beginning of the word
    end: int


class Tokens(NamedTuple):
    """Of one text, a row for each token."""

    ids: list[int]
    values: list[float]  # nan where the token is no number
    starts: list[int]  # the characters that it stands for: text[start:end]
    ends: list[int]
    sentences: list[int]  # 0 for the first


@functools.cache
def vocabulary() -> dict[str, int]:
    """Name -> id. Elements are named "Na", space groups "@225", kinds "#length", Wyckoff letters "#a", buckets "~0"."""
    names = ["<pad>", *SYMBOLS, *(f"@{n}" for n in range(1, 231)), *(f"#{kind}" for kind in NUMBER_KINDS)]
    names += [f"#{letter}" for letter in LETTERS] + [*SIGNS, *WORDS] + [f"~{k}" for k in range(N_BUCKETS)]
    assert len(set(names)) == len(names)
    return {name: k for k, name in enumerate(names)}


@functools.cache
def vocabulary_hash() -> int:
    return zlib.crc32("\n".join(vocabulary()).encode())


@functools.cache
def _group_ids() -> dict[str, int]:
    """By symbol. Pm and Cm are elements, too, and read as these."""
    symbols = {symbol: space_group(symbol).number for symbol in space_group_symbols() if symbol not in SYMBOLS}
    return {symbol: vocabulary()[f"@{number}"] for symbol, number in symbols.items()}


@functools.lru_cache(maxsize=65536)
def _number(text: str, kind: str | None) -> tuple[int, float]:
    if kind is None:
        kind = "signed" if text[0] in "+-−" else "decimal" if "." in text else "integer"
    return vocabulary()[f"#{kind}"], float(text.replace("−", "-"))


@functools.lru_cache(maxsize=65536)
def _pieces(word: str) -> tuple[Piece, ...]:
    """A run of letters, digits, hyphens and slashes: one token, or a formula's elements and counts, or its parts."""
    if word.lower() in SKIPPED:
        return ()
    known = vocabulary()
    if word in SYMBOLS:
        return (Piece(known[word], np.nan, 0, len(word)),)
    if (id_ := _group_ids().get(word)) is not None or (id_ := known.get(word.lower())) is not None:
        return (Piece(id_, np.nan, 0, len(word)),)
    if _FORMULA.fullmatch(word):
        parts = list(_FORMULA_PART.finditer(word))
        if all(part[1] in SYMBOLS for part in parts):
            pieces = []
            for part in parts:
                pieces.append(Piece(known[part[1]], np.nan, *part.span(1)))
                if part[2]:
                    pieces.append(Piece(known["#integer"], float(part[2]), *part.span(2)))
            return tuple(pieces)
    if re.search(r"[-/_]", word):
        pieces = []
        for part in re.finditer(r"[^-/_]+", word):
            shift = part.start()
            pieces += [piece._replace(start=piece.start + shift, end=piece.end + shift) for piece in _pieces(part[0])]
        return tuple(pieces)
    return (Piece(known[f"~{zlib.crc32(word.lower().encode()) % N_BUCKETS}"], np.nan, 0, len(word)),)


@functools.lru_cache(maxsize=4096)
def _sign(sign: str) -> int:
    known = vocabulary()
    return known[sign] if sign in SIGNS else known[f"~{zlib.crc32(sign.encode()) % N_BUCKETS}"]


def tokenize(text: str) -> Tokens:
    """A text of white space alone has no tokens."""
    ids: list[int] = []
    values: list[float] = []
    starts: list[int] = []
    ends: list[int] = []
    sentences: list[int] = []
    sentence, known = 0, vocabulary()
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        start, end = match.span()
        if kind == "word":
            for piece in _pieces(match[0]):
                ids.append(piece.id)
                values.append(piece.value)
                starts.append(start + piece.start)
                ends.append(start + piece.end)
                sentences.append(sentence)
            continue
        if match[0] in SKIPPED:
            continue
        if kind == "sign":
            id_, value = _sign(match[0]), np.nan
        elif kind == "letter":
            id_, value = known["#" + match["letter"]], float(match["multiplicity"])
        else:
            unit = match["unit"] or match["range"]
            id_, value = _number(match["number"], UNITS[unit] if unit else None)
        ids.append(id_)
        values.append(value)
        starts.append(start)
        ends.append(end)
        sentences.append(sentence)
        if match[0] in _SENTENCE_ENDS:
            sentence += 1
    return Tokens(ids, values, starts, ends, sentences)


@dataclass(frozen=True, eq=False)
class TextPart:
    ids: Tensor  # (B, T) int64, 0 where there is no token
    values: Tensor  # (B, T) float32, nan where the token is no number
    mask: Tensor  # (B, T) bool

    def to(self, device: torch.device | str) -> TextPart:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("ids", "values", "mask")}
        return replace(self, **moved)


class WordEncoder(Encoder):
    """Reads texts, as `str` or as `Description`: the first `max_tokens` tokens of each."""

    modality = "text"
    reads = "description"
    periods: Tensor

    def __init__(
        self, width: int = 128, n_layer: int = 2, n_head: int = 4, dropout: float = 0.0, max_tokens: int = 512
    ):
        super().__init__()
        if width % n_head:
            raise ValueError(f"width must be divisible by n_head (={n_head}), got {width}")
        self.width, self.max_tokens = width, max_tokens
        self.embedding, self.position = nn.Embedding(len(vocabulary()), width), nn.Embedding(max_tokens, width)
        periods = torch.from_numpy(np.geomspace(0.02, 2000.0, N_PERIODS).astype(np.float32))
        self.register_buffer("periods", periods, persistent=False)
        self.number = nn.Sequential(nn.Linear(2 * N_PERIODS + 2, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([Block(width, n_head, dropout) for _ in range(n_layer)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.position.weight, std=0.1)

    def collate(self, items: Sequence[str | Description]) -> TextPart:
        """ValueError for a text without a word."""
        rows = [self.spans(item) for item in items]
        for k, (item, row) in enumerate(zip(items, rows, strict=True)):
            if not row.ids:
                raise ValueError(f"text {k} is empty: {str(item)!r}; leave the text out, or write a word")
        longest = max(len(row.ids) for row in rows)
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        values = np.full((len(rows), longest), np.nan, dtype=np.float32)
        lengths = np.array([len(row.ids) for row in rows])
        for k, row in enumerate(rows):
            ids[k, : len(row.ids)] = row.ids
            values[k, : len(row.ids)] = row.values
        mask = np.arange(longest) < lengths[:, None]
        return TextPart(torch.from_numpy(ids), torch.from_numpy(values), torch.from_numpy(mask))

    def spans(self, item: str | Description) -> Tokens:
        """Which characters, and which sentence, each token of a text stands for; in the order of the encoding."""
        found, n = tokenize(str(item)), self.max_tokens
        return Tokens(found.ids[:n], found.values[:n], found.starts[:n], found.ends[:n], found.sentences[:n])

    def forward(self, part: TextPart) -> Encoding:
        x = self.embedding(part.ids) + self.position.weight[: part.ids.shape[1]]  # (B, T, C)
        numbers = (~part.values.isnan()).nonzero(as_tuple=True)
        x = x.index_put(numbers, self.number(self._features(part.values[numbers])).to(x.dtype), accumulate=True)
        for block in self.blocks:
            x = block(x, part.mask)
        return Encoding(self.norm(x), part.mask)

    def _features(self, values: Tensor) -> Tensor:
        """(n,) -> (n, 2 N_PERIODS + 2): sines and cosines from a fiftieth up, the logarithm and its square"""
        phase = 2 * torch.pi * values[:, None] / self.periods
        log = values.sign() * values.abs().log1p()
        return torch.cat([phase.sin(), phase.cos(), log[:, None], 0.1 * log[:, None] ** 2], dim=1)


class Block(nn.Module):
    def __init__(self, width: int, n_head: int, dropout: float):
        super().__init__()
        self.n_head, self.head_width, self.dropout = n_head, width // n_head, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), mask (B, T) of what may be looked at -> (B, T, C)"""
        B, T, C = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, 3, self.n_head, self.head_width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # (B, H, T, D) each
        y = masked_attention(q, k, v, mask)
        x = x + F.dropout(self.out(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_2(x)), self.dropout, self.training)
