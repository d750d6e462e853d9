"""Plain-text tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | int | float | None


def text_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Columns as wide as their widest cell; numbers to the right, None empty."""
    texts = [list(header)] + [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in texts) for k in range(len(header))]
    right = [any(isinstance(row[k], int | float) for row in rows) for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        parts = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(texts[0]), "  ".join("-" * width for width in widths), *map(line, texts[1:])])


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
