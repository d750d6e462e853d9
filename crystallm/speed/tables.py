"""Speed and growth as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

SPEED_COLUMNS = (
    "row",
    "structures/s",
    "plain baseline",
    "ratio",
    "same results",
    "share of ceiling",
    "peak MB",
    "CrystaLLM's code, elsewhere",
)


FACTS = (
    "million_parameters_in_blocks",
    "share_of_a_step",
    "tokens_per_structure",
    "model_flop_utilisation",
    "gpu_peak_mb",
    "workers",
    "once_started_per_second",
    "valid",
)


def speed_table(result: Mapping[str, Any]) -> str:
    """Rates are per second of CPU time, or of the clock where a row ran on a GPU."""
    on_gpu = result["settings"]["device"] != "cpu"
    lines = [SPEED_COLUMNS]
    for name, row in result["rows"].items():
        per = "second" if name == "draw" or (on_gpu and name in ("train", "sample")) else "cpu_second"
        theirs = row["crystallm_elsewhere"]
        lines.append(
            (
                name,
                number(row[f"structures_per_{per}"]),
                f"{number(row[f'plain_per_{per}'])} ({row['plain_structures']})",
                number(row["ratio"]),
                "-" if row["same_as_plain"] is None else f"{row['same_as_plain']} of {row['compared']}",
                f"{share(row['share_of_ceiling'])} {row['ceiling']}",
                megabytes(row["peak_mb"]),
                "-" if theirs is None else f"{number(theirs)}, {number(row[f'structures_per_{per}'] / theirs)} x",
            )
        )
    notes = [f"{key}: {value}" for key, value in result["hardware"].items() if value is not None]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    settings = result["settings"]
    ceilings = [f"{name}: {value:,}" for name, value in result.get("ceilings", {}).items()]
    facts = [
        f"{name}: {key} {value:.3g}" if isinstance(value, float) else f"{name}: {key} {value}"
        for name, row in result["rows"].items()
        for key, value in row.items()
        if key in FACTS
    ]
    if train := result["rows"].get("train"):
        before, after = megabytes(train["start_mb"]), megabytes(train["end_mb"])
        facts.append(f"train: {before} MB before, {after} after {train['structures']:,} structures")
    return "\n".join(
        [
            f"{settings['n_structures']} structures of {settings['corpus']}, "
            + (
                "seconds of the clock for train, sample and draw, of CPU time for the rest"
                if on_gpu
                else "per CPU-second"
            )
            + ("" if on_gpu or "draw" not in result["rows"] else ", draw by the clock"),
            aligned(lines),
            "; ".join(ceilings),
            "; ".join(facts),
            f"{'; '.join(notes)}; load average {result['load_average']}",
            versions,
        ]
    )


def growth_table(result: Mapping[str, Any]) -> str:
    """A line for each stage and size, and the exponent of the fit: 1 is linear."""
    lines: list[tuple[str, ...]] = [("stage", "n", "CPU s", "ms each", "peak MB")]
    for stage, rows in result["stages"].items():
        for row in rows:
            lines.append(
                (
                    stage,
                    f"{row['n']:,}",
                    f"{row['cpu_seconds']:.1f}",
                    f"{1000 * row['cpu_seconds'] / row['n']:.3g}",
                    megabytes(row["peak_mb"]),
                )
            )
    fits = [
        f"{stage}: " + ", ".join(f"{name} grows as n^{exponent:.2f}" for name, exponent in fit.items())
        for stage, fit in result["exponents"].items()
        if fit is not None
    ]
    left_out = [
        f"{stage}: n = {', '.join(f'{n:,}' for n in sizes)} left out, it would have taken too long"
        for stage, sizes in result["left_out"].items()
    ]
    return "\n".join([aligned(lines), *fits, *left_out])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in cells)


def number(value: float) -> str:
    """Three digits."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.01 else f"{100 * value:.1g} %"
