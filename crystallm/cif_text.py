"""The text side of a CIF: what may be read at all, its data blocks, and its items as strings and numbers.

gemmi reads the syntax. What the values mean is settled in cif.py and cif_symmetry.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

REASONS = (
    "empty",  # nothing but white space
    "too_large",  # above MAX_CIF_BYTES
    "binary",  # holds a byte 0
    "not_utf8",  # in a value that is needed
    "syntax",  # not a CIF
    "several_blocks",  # more than one crystal, and none was named
    "no_block",  # the block asked for is not there
    "no_cell",
    "bad_cell",
    "no_atoms",
    "bad_coordinate",
    "unknown_element",
    "vacancy",
    "partial_occupancy",
    "implicit_hydrogens",
    "bad_symmetry",
    "overlap",  # two atoms at one place
)
MAX_CIF_BYTES = 20_000_000

Table = dict[str, list[str]]  # tag in lower case, dots as underscores -> its values, still quoted

CELL_TAGS = (
    *("_cell_length_a", "_cell_length_b", "_cell_length_c"),
    *("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma"),
)
FRACT_TAGS = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
CARTN_TAGS = ("_atom_site_cartn_x", "_atom_site_cartn_y", "_atom_site_cartn_z")
CARTN_MATRIX_TAGS = tuple(f"_atom_sites_cartn_tran_matrix_{i}{j}" for i in (1, 2, 3) for j in (1, 2, 3))
CARTN_VECTOR_TAGS = tuple(f"_atom_sites_cartn_tran_vector_{i}" for i in (1, 2, 3))
MULTIPLICITY_TAGS = ("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity")


class CIFError(ValueError):
    """Why a text gives no crystal; `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def decode_cif(data: str | bytes) -> str:
    """With U+FFFD for bytes that are no UTF-8. CIFError for what is empty, too large or no text."""
    if len(data) > MAX_CIF_BYTES:
        raise CIFError("too_large", f"{len(data):,} bytes, at most {MAX_CIF_BYTES:,} are read")
    if isinstance(data, bytes):
        if b"\0" in data:
            raise CIFError("binary", f"byte 0 at position {data.index(0)}, which no text has")
        data = data.decode("utf-8", "replace")  # an author's name in Latin-1 costs no crystal: see _check_encoding
    data = data.removeprefix("\ufeff")
    if not data or data.isspace():
        raise CIFError("empty", "no text but white space")
    return data


def split_cif(text: str, name: str) -> list[tuple[str, str]]:
    """(id, text) of each data block that holds a crystal: the id is `name`, or "name#block" where there are several.

    Comments directly above `data_` go with their block. Blocks that mention neither cell nor atoms are left out when
    another one does; a file without any data block comes back whole, for parse_cif to say what is wrong with it.
    """
    if len(_BLOCK_START.findall(text)) <= 1:
        return [(name, text)]
    starts, names, inside_text, comments = [], [], False, None
    position = 0
    for line in text.splitlines(keepends=True):
        if line.startswith(";"):
            inside_text = not inside_text
        match = None if inside_text else _BLOCK_START.match(line)
        if match:
            starts.append(position if comments is None else comments)
            names.append(match[1])
        if not line.startswith("#"):
            comments = None
        elif comments is None:
            comments = position
        position += len(line)
    if len(names) <= 1:
        return [(name, text)]
    ends = [*starts[1:], len(text)]
    starts[:1] = [0]
    blocks = [(block, text[i:j]) for block, i, j in zip(names, starts, ends, strict=True)]
    with_crystal = [(block, body) for block, body in blocks if _CRYSTAL_TAG.search(body)] or blocks[:1]
    if len(with_crystal) == 1:
        return [(name, with_crystal[0][1])]
    seen: Counter[str] = Counter()
    records = []
    for block, body in with_crystal:
        seen[block] += 1
        records.append((f"{name}#{block}" + (f"~{seen[block]}" if seen[block] > 1 else ""), body))
    return records


_BLOCK_START = re.compile(r"^[ \t]*data_(\S*)", re.IGNORECASE | re.MULTILINE)
_CRYSTAL_TAG = re.compile(r"^\s*_(?:cell[_.]length_a|atom_site[_.](?:fract|cartn)_x)\b", re.IGNORECASE | re.MULTILINE)


def read_table(text: str, block: str | None) -> tuple[str, Table]:
    import gemmi  # not at the top: writing, and reading canonical text, do without it

    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as err:
        try:  # P m -3 m without quotes is not CIF, but is what people write by hand
            document = gemmi.cif.read_string(_UNQUOTED.sub(r"\1 '\2'", text))
        except (ValueError, RuntimeError):
            raise CIFError("syntax", f"{' '.join(str(err).split())}; wanted a CIF") from None
    if block is not None:
        found = document.find_block(block)
        if found is None:
            raise CIFError("no_block", f"no block {block!r}; the file has {', '.join(b.name for b in document)}")
        return block, _table(found)
    tables = [(b.name, _table(b)) for b in document]
    if len(tables) > 1:
        tables = [t for t in tables if not t[1].keys().isdisjoint(_CRYSTAL_KEYS)] or tables[:1]
    if not tables:
        raise CIFError("syntax", "no data block; wanted a line data_...")
    if len(tables) > 1:
        names = ", ".join(name for name, _ in tables[:5])
        raise CIFError("several_blocks", f"{len(tables)} blocks hold a crystal ({names}); wanted one, or a name")
    return tables[0]


_UNQUOTED = re.compile(r"^[ \t]*(_[^\s'\"#]+)[ \t]+([^\s'\";#_][^'\"#\n]*[ \t][^'\"#\n]*?)[ \t\r]*$", re.MULTILINE)
_CRYSTAL_KEYS = {CELL_TAGS[0], FRACT_TAGS[0], CARTN_TAGS[0]}


def _table(block: Any) -> Table:
    table: Table = {}
    for item in block:
        pair = item.pair
        if pair is not None:
            table[pair[0].lower().replace(".", "_")] = [pair[1]]
        elif (loop := item.loop) is not None:
            tags, values = loop.tags, loop.values
            for i, tag in enumerate(tags):
                table[tag.lower().replace(".", "_")] = values[i :: len(tags)]
    return table


def unquote(value: str) -> str:
    if value[:1] in ("'", '"'):
        return value[1:-1].strip()
    if value[:1] == ";":
        return value[1:].removesuffix(";").strip()
    return value


def string_value(table: Table, *tags: str) -> str | None:
    """The first of these that has a value; '?' and '.' are none."""
    for tag in tags:
        values = table.get(tag)
        if values and (text := unquote(values[0])) not in ("", "?", "."):
            _check_encoding(tag, values[:1])
            return text
    return None


def column(table: Table, *tags: str) -> list[str] | None:
    for tag in tags:
        if tag in table:
            _check_encoding(tag, table[tag])
            return [unquote(value) for value in table[tag]]
    return None


def _check_encoding(tag: str, values: Sequence[str]) -> None:
    if broken := next((value for value in values if "\ufffd" in value), None):
        raise CIFError("not_utf8", f"{tag} is {unquote(broken)!r}, of bytes that are no UTF-8")


def number(text: str) -> float:
    """3.89(2) -> 3.89, 1/3 -> 0.333...; ValueError for anything else that is no number."""
    try:
        return float(text)
    except ValueError:
        text = unquote(text)
        if match := _FRACTION.fullmatch(text):
            return int(match[1]) / int(match[2])
        return float(_UNCERTAINTY.sub("", text))


_FRACTION = re.compile(r"([+-]?\d+)/([1-9]\d*)")
_UNCERTAINTY = re.compile(r"\(\d*\)$")


def integers(table: Table, *tags: str) -> list[int] | None:
    """None where the tag is missing or one of its values is no whole number."""
    values = next((table[tag] for tag in tags if tag in table), None)
    if values is None:
        return None
    try:
        return [int(unquote(value)) for value in values]
    except ValueError:
        return None
