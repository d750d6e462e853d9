"""What the tokens are: a vocabulary file (JSON), read into token bytes, classes and numeric values.

A lossless vocabulary ("kind": "lexemes") has the 256 bytes as ids 0-255, then its classes in file order, then the pad
token. A class is a list of lexemes or a grid of decimal numbers; the number of decimals written in the grid *is* the
precision. A lexeme that is a single byte (`H`, `3`, the newline) keeps the byte's id.

A vocabulary of "pieces" (tokenizer/pieces.py) is read in the same way, but no grammar is known over its tokens. So the
newline that ends a text has a token of its own, before the pad token. Its "order" says which texts it is for: canonical
ones (the default), or ones whose blocks stand in another order.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer.elements import ELEMENT_ORDER
from tokenizer.space_group_symbols import SPACE_GROUP_SYMBOLS

FOLDER = Path(__file__).parent / "vocabularies"
BUILT_IN = ("cif", "crystallm_v1")
MAX_SIZE = 65_536  # token shards are uint16
ORDERS = ("canonical", "cell_last")  # of the blocks of a text; crystallm/layout.py puts them so

# Property lines stand before data_ in this order.
PROPERTY_NAMES = (
    "band_gap_ev",
    "formation_energy_ev_per_atom",
    "e_above_hull_ev_per_atom",
    "density_g_per_cm3",
    "volume_per_atom_ang3",
)
# The least value that can be; tokens go down to -10 for all of them.
PROPERTY_LEAST = {
    "band_gap_ev": 0.0,
    "e_above_hull_ev_per_atom": 0.0,
    "density_g_per_cm3": 0.01,
    "volume_per_atom_ang3": 0.01,
}
WYCKOFF_LETTERS = string.ascii_lowercase + "A"  # Pmmm has 27 positions; the ITA's alpha is written A
LOOP_HEADER = (
    "\nloop_\n_atom_site_type_symbol\n_atom_site_Wyckoff_symbol"
    "\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z"
)


class VocabularyError(ValueError):
    """A vocabulary file that cannot be used: says which file and field."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token bytes by id, with the classes and numeric values that models and grammars are built from."""

    name: str
    kind: str  # "lexemes", "pieces": lossless, encoded by tiktoken | "crystallm_v1": the published 371 tokens
    tokens: tuple[bytes, ...]  # by id; the pad token last where there is one, before it the end token of "pieces"
    classes: dict[str, np.ndarray]  # class name -> (n,) int32 ids, numbers ascending, other lexemes in file order
    values: np.ndarray  # (size,) float32, nan where the token is not a number
    decimals: dict[str, int]  # class name -> digits after the point, for the classes that are grids
    pattern: str  # regular expression that cuts a text into lexemes or pieces; "" for crystallm_v1
    spec: str  # the JSON text it was read from
    order: str = "canonical"  # one of ORDERS: how the texts stand that it is for

    @property
    def size(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def hash(self) -> str:
        """sha256, in hex, over the tokens in id order, each preceded by its length (4 bytes, little-endian), and the
        order of the texts where it is not the canonical one.
        """
        digest = hashlib.sha256()
        for token in self.tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        if self.order != "canonical":
            digest.update(self.order.encode())
        return digest.hexdigest()

    @functools.cached_property
    def ids(self) -> dict[bytes, int]:
        return {token: id_ for id_, token in enumerate(self.tokens)}

    def __reduce__(self) -> tuple[Any, ...]:
        return (load_vocabulary, (self.name,)) if self.name in BUILT_IN else (vocabulary_from_spec, (self.spec,))


def load_vocabulary(vocabulary: str | Path) -> Vocabulary:
    """A built-in vocabulary by name ("cif", "crystallm_v1"), or one read from a JSON file."""
    if str(vocabulary) in BUILT_IN:
        return _built_in(str(vocabulary))
    path = Path(vocabulary)
    if not path.is_file():
        raise VocabularyError(f"vocabulary {str(vocabulary)!r} is neither one of {BUILT_IN} nor a file")
    loaded = vocabulary_from_spec(path.read_text(encoding="utf-8"), where=str(path))
    if loaded.name in BUILT_IN and loaded.hash != _built_in(loaded.name).hash:
        raise VocabularyError(f"{path}: a vocabulary that differs from the built-in {loaded.name!r} needs another name")
    return loaded


@functools.cache
def _built_in(name: str) -> Vocabulary:
    path = FOLDER / f"{name}.json"
    return vocabulary_from_spec(path.read_text(encoding="utf-8"), where=str(path))


def vocabulary_from_spec(spec: str, where: str = "vocabulary") -> Vocabulary:
    """Expand the JSON text of a vocabulary file; `where` names it in errors."""
    try:
        fields = json.loads(spec)
        name, kind = fields["name"], fields["kind"]
        if kind in ("lexemes", "pieces"):
            return _read_lexemes(name, kind, fields, spec, where)
        if kind == "crystallm_v1":
            return _read_crystallm_v1(name, fields, spec)
    except json.JSONDecodeError as err:
        raise VocabularyError(f"{where}: not JSON: {err}") from err
    except KeyError as err:
        raise VocabularyError(f"{where}: field {err} is missing") from err
    raise VocabularyError(f"{where}: kind {kind!r} is neither 'lexemes', 'pieces' nor 'crystallm_v1'")


def _read_lexemes(name: str, kind: str, fields: dict[str, Any], spec: str, where: str) -> Vocabulary:
    order = fields.get("order", "canonical")
    if order not in ORDERS or (kind == "lexemes" and order != "canonical"):
        known = ORDERS if kind == "pieces" else "only 'canonical', as the grammar is of canonical texts"
        raise VocabularyError(f"{where}: order {order!r} is not known for kind {kind!r}, there is {known}")
    ids: dict[bytes, int] = {bytes([byte]): byte for byte in range(256)}
    classes: dict[str, np.ndarray] = {}
    numbers: list[tuple[np.ndarray, list[float]]] = []
    decimals: dict[str, int] = {}
    for entry in fields["classes"]:
        if "grid" in entry:
            lexemes, values, decimals[entry["name"]] = _expand_grid(entry["grid"], f"{where}: {entry['name']}")
        else:
            lexemes, values = entry["tokens"], []
        class_ids = [ids.setdefault(lexeme.encode(), len(ids)) for lexeme in lexemes]
        if len(set(class_ids)) < len(class_ids):
            raise VocabularyError(f"{where}: class {entry['name']!r} holds a lexeme twice")
        classes[entry["name"]] = np.array(class_ids, dtype=np.int32)
        if values:
            numbers.append((classes[entry["name"]], values))
    classes["byte"] = np.arange(256, dtype=np.int32)
    for special in ("end", "pad") if kind == "pieces" else ("pad",):
        token = fields[special].encode()
        if token in ids:
            raise VocabularyError(f"{where}: the {special} token {token!r} is a lexeme too")
        classes[special] = np.array([len(ids)], dtype=np.int32)
        ids[token] = len(ids)
    tokens = tuple(ids)
    if len(tokens) > MAX_SIZE:
        raise VocabularyError(f"{where}: {len(tokens)} tokens, but shards hold ids below {MAX_SIZE}: coarsen a grid")
    values_by_id = np.full(len(tokens), np.nan, dtype=np.float32)  # (size,)
    for number_ids, values in numbers:
        values_by_id[number_ids] = values
    return Vocabulary(name, kind, tokens, classes, values_by_id, decimals, fields["pattern"], spec, order)


def _expand_grid(grid: dict[str, str], where: str) -> tuple[list[str], list[float], int]:
    """The lexemes and values from `first` to `last` in steps of their last digit; a "+" in `last` signs them all."""
    first, last = grid["first"], grid["last"]
    places = {len(text.partition(".")[2]) for text in (first, last)}
    if len(places) > 1:
        raise VocabularyError(f"{where}: first {first!r} and last {last!r} differ in their number of decimals")
    n_decimals, sign = places.pop(), "+" if last.startswith("+") else ""
    steps = range(int(first.replace(".", "")), int(last.replace(".", "")) + 1)
    values = [step / 10**n_decimals for step in steps]
    prefix, suffix = grid.get("prefix", ""), grid.get("suffix", "")
    return [f"{prefix}{value:{sign}.{n_decimals}f}{suffix}" for value in values], values, n_decimals


def _read_crystallm_v1(name: str, fields: dict[str, Any], spec: str) -> Vocabulary:
    """The published tokens in their published order; classes follow from the tokens themselves."""
    tokens: list[str] = fields["tokens"]
    kind_of = [_crystallm_v1_class(token) for token in tokens]
    classes = {kind: np.flatnonzero(np.array(kind_of) == kind).astype(np.int32) for kind in dict.fromkeys(kind_of)}
    values = np.full(len(tokens), np.nan, dtype=np.float32)
    values[classes["digit"]] = np.arange(10)
    encoded = tuple(token.encode() for token in tokens)
    return Vocabulary(name, "crystallm_v1", encoded, classes, values, {}, "", spec)


def _crystallm_v1_class(token: str) -> str:
    if token == "<unk>":
        return "unknown"
    if token.endswith("_sg"):
        return "space_group"
    if re.fullmatch("[A-Z][a-z]?", token):
        return "element"
    if token.isdigit():
        return "digit"
    return "keyword" if len(token) > 1 else "symbol"


def cif_spec(
    name: str = "cif",
    length: tuple[str, str] = ("1.00", "99.99"),
    angle: tuple[str, str] = ("10.0", "170.0"),
    coordinate: tuple[str, str] = ("0.000", "0.999"),
    property_value: tuple[str, str] = ("-10.00", "+99.99"),
) -> str:
    """JSON text of the `cif` vocabulary, or of one on other number grids: (first, last) as they are written."""
    grids = {
        "length": {"first": length[0], "last": length[1]},
        "angle": {"first": angle[0], "last": angle[1]},
        "coordinate": {"first": coordinate[0], "last": coordinate[1], "prefix": " "},
        "property_value": {"first": property_value[0], "last": property_value[1], "suffix": "\n"},
    }
    classes: list[dict[str, Any]] = [
        {"name": "data", "tokens": ["data_"]},
        {"name": "formula_element", "tokens": list(ELEMENT_ORDER)},
        {"name": "integer", "grid": {"first": "1", "last": "999"}},
        {"name": "units_keyword", "tokens": ["\n_crystallm_primitive_formula_units "]},
        {"name": "space_group_keyword", "tokens": ["\n_symmetry_space_group_name_H-M"]},
        {"name": "space_group", "tokens": [f" {symbol}" for symbol in SPACE_GROUP_SYMBOLS]},
        {"name": "length_keyword", "tokens": [f"\n_cell_length_{axis} " for axis in "abc"]},
        {"name": "length", "grid": grids["length"]},
        {"name": "angle_keyword", "tokens": [f"\n_cell_angle_{angle} " for angle in ("alpha", "beta", "gamma")]},
        {"name": "angle", "grid": grids["angle"]},
        {"name": "loop_header", "tokens": [LOOP_HEADER]},
        {"name": "site_element", "tokens": [f"\n{symbol}" for symbol in ELEMENT_ORDER]},
        {"name": "wyckoff", "tokens": [f" {letter}" for letter in WYCKOFF_LETTERS]},
        {"name": "coordinate", "grid": grids["coordinate"]},
        {"name": "property_keyword", "tokens": [f"# {name} " for name in PROPERTY_NAMES]},
        {"name": "property_value", "grid": grids["property_value"]},
        {"name": "end", "tokens": ["\n"]},
    ]
    decimals = {key: len(grid["last"].partition(".")[2]) for key, grid in grids.items()}
    if min(decimals.values()) < 1:
        raise VocabularyError(f"each grid needs at least one decimal, or it is no lexeme of its own; got {decimals}")
    pattern = _cif_pattern(decimals)
    fields = {"format": 1, "name": name, "kind": "lexemes", "pad": "<|pad|>", "pattern": pattern, "classes": classes}
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")) + "\n"


def _cif_pattern(decimals: dict[str, int]) -> str:
    """Lexemes as character classes: thousands of literal alternatives would be 1,000 times slower to match.

    Free of look-around, so that the automaton runs and not a backtracking matcher. A piece that is no lexeme is merged
    from bytes by tiktoken, so every text is covered. No piece but the loop header reaches past a newline that is
    followed by `d` or `#`, which is what lets `encode_batch` join documents.
    """
    cell = sorted(
        [(decimals["length"], r"[0-9]{1,2}\.[0-9]{%d}"), (decimals["angle"], r"[0-9]{2,3}\.[0-9]{%d}")], reverse=True
    )  # more decimals first, or 10.05 would be cut into 10.0 and 5
    return "|".join(
        [
            LOOP_HEADER.replace("\n", r"\n"),
            r"\n_symmetry_space_group_name_H-M",
            r"\n_[a-z_]{1,60} ",
            r"\n?[A-Z][a-z]?",
            r" 0\.[0-9]{%d}" % decimals["coordinate"],
            r" [ABCFIPR][-0-9a-z_/]{1,9}",
            r" [a-zA]",
            r"[-+][0-9]{1,2}\.[0-9]{%d}\n" % decimals["property_value"],
            *(form % places for places, form in cell),
            r"[1-9][0-9]{0,2}",
            r"data_",
            r"# [a-z0-9_]{1,60} ",
            r"(?s:.)",
        ]
    )
