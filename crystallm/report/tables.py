"""An evaluation as plain text for a terminal."""

from __future__ import annotations

from crystallm.metrics.evaluate import Evaluation, SetResult, Share
from crystallm.rejections import Rejections
from crystallm.text_table import text_table


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def evaluation_table(evaluation: Evaluation) -> str:
    """What `bin/evaluate_cifs.py` prints."""
    generated, reference = evaluation.generated, evaluation.reference
    counts = generated.counts
    parts = [
        f"{counts.n_valid} of {counts.n_read} valid by the rules '{evaluation.rules}' "
        f"({percent(counts.n_valid / max(1, counts.n_read))})",
        _rates(evaluation, generated, reference),
    ]
    if counts.rejected_by:
        rejections = Rejections()
        for row in generated.rows:
            if row.rejected_by is not None:
                rejections.add(row.id, row.rejected_by, row.reason)
        parts.append("\n".join(["rejected by", *rejections.lines()]))
    shares = [
        _share("unique among the valid", evaluation.uniqueness),
        _share("novel among the valid", evaluation.novelty),
        _share("valid, unique and novel among all", evaluation.unique_and_novel),
    ]
    if any(shares):
        parts.append("\n".join(filter(None, shares)))
    if evaluation.distances:
        parts.append(text_table(("Wasserstein distance to the reference", ""), list(evaluation.distances.items())))
    rate = counts.n_read / evaluation.checks_cpu_seconds if evaluation.checks_cpu_seconds else 0.0
    parts.append(f"{evaluation.seconds:.1f} s; checks of {rate:.0f} records a CPU second")
    return "\n\n".join(parts)


def _rates(evaluation: Evaluation, generated: SetResult, reference: SetResult | None) -> str:
    header = ["check", "passed"] + (["reference"] if reference else [])
    rows = []
    for name in generated.rates:
        cells = [f"{name} (reported)" if name in evaluation.reporting else name, percent(generated.rates[name])]
        rows.append(cells + ([percent(reference.rates[name])] if reference else []))
    if reference:
        counts = reference.counts
        total = percent(generated.counts.n_valid / max(1, generated.counts.n_read))
        rows.append(["all that reject", total, percent(counts.n_valid / max(1, counts.n_read))])
    return text_table(header, rows)


def _share(name: str, share: Share | None) -> str:
    if share is None or share.rate is None:
        return ""
    unknown = f", {share.n_unknown} that could not be compared" if share.n_unknown else ""
    return f"{name}: {share.n} of {share.out_of} ({percent(share.rate)}){unknown}"
