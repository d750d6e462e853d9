"""Make a model small enough to share:  python bin/export_model.py runs/mine --records data/mine/records.parquet --out m

Writes the averaged weights in 16 bits, their config.json and, from the records and the shards beside them, known.npz
(hashes by which bin/sample.py tells whether the training data hold a crystal like the one it drew, without holding any
of them) and token_counts.npz (how many training structures hold each token, for bin/extract_embeddings.py). Of a
diffusion model or a property predictor it writes the first two. In the folder of an exported model these are replaced,
and README.md and the like stay; a folder that holds anything else is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet as pq

from crystallm.checks.fingerprints import KnownFingerprints
from crystallm.hub import EXTRA_FILES, MODEL_FILES
from crystallm.model.checkpoint import export_checkpoint, load_checkpoint
from crystallm.properties.checkpoint import export_predictor, is_predictor
from crystallm.refine.checkpoint import export_refiner, is_refiner
from crystallm.report.embeddings import save_counts, training_counts

TRAINING_FILES = {"known.npz", "token_counts.npz"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, or a run's folder: its best")
    parser.add_argument("--records", help="records.parquet of bin/prepare_data.py; its train rows are indexed")
    parser.add_argument("--out", required=True, help="folder, new or of an exported model, which is replaced")
    options = parser.parse_args()
    there = {name for name in EXTRA_FILES if Path(options.out, name).is_file()}
    written = set(MODEL_FILES)
    try:
        if is_refiner(options.model):
            folder = export_refiner(options.model, options.out)
        elif is_predictor(options.model):
            folder = export_predictor(options.model, options.out)
        else:
            folder = export_checkpoint(options.model, options.out)
            if options.records:
                add_training_data(folder, options.model, options.records)
                written |= TRAINING_FILES
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(f"{sum((folder / name).stat().st_size for name in written):,} bytes written to {folder}")
    if kept := sorted(there - written):
        print(f"kept from before: {', '.join(kept)}")
    if stale := sorted(there & TRAINING_FILES - written):
        print(f"of the earlier model's training data: {', '.join(stale)}; --records writes these anew")


def add_training_data(folder: Path, model_path: str, records: str) -> None:
    """known.npz and token_counts.npz"""
    table = pq.read_table(records, columns=["id", "text"], filters=[("split", "=", "train")])
    known = KnownFingerprints.from_texts(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    known.save(folder / "known.npz")
    model, tokenizer, info = load_checkpoint(model_path)
    counts, _ = training_counts(model, tokenizer, info, Path(records).parent)
    assert counts is not None
    save_counts(folder, counts, tokenizer)
    print(f"{len(known):,} fingerprints of {table.num_rows:,} training crystals")


if __name__ == "__main__":
    main()
