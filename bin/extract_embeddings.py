#!/usr/bin/env python
"""Learned vectors of elements, space groups and numbers:  python bin/extract_embeddings.py --out embeddings/

For each class NAME.npz (labels, values, vectors, training structures that hold the token), for elements NAME.csv as
well, pictures, and summary.json. Prints whether chemistry shows: figures beside those of shuffled labels.
"""

from __future__ import annotations

import argparse

from crystallm.data.shards import ShardError
from crystallm.model.checkpoint import load_checkpoint, load_crystallm
from crystallm.output import check_output
from crystallm.report.embedding_tests import embedding_table
from crystallm.report.embeddings import (
    MIN_STRUCTURES,
    embedding_files,
    save_counts,
    training_counts,
    write_embeddings,
)
from crystallm.resources import resource_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder or CrystaLLM's ckpt.pt; left out: the bundled model")
    parser.add_argument("--data", help="shards to count tokens in; left out: those that the model was trained on")
    parser.add_argument("--min-structures", type=int, default=MIN_STRUCTURES, help="rarer tokens are left out of it")
    parser.add_argument("--keep-counts", action="store_true", help="write the counts beside the model's weights")
    parser.add_argument("--out", required=True, help="folder")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names in it")
    options = parser.parse_args()
    path = options.model or resource_path("resources/model")
    load = load_crystallm if str(path).endswith(".pt") else load_checkpoint
    try:
        model, tokenizer, info = load(path)
        for file in embedding_files(model, tokenizer, options.out):
            check_output(file, overwrite=options.overwrite)
        if options.keep_counts:
            counts, source = training_counts(model, tokenizer, info, options.data)
            if counts is None:
                raise ValueError(f"--keep-counts: {source}")
            save_counts(info["path"], counts, tokenizer)
        summary = write_embeddings(model, tokenizer, info, options.out, options.data, options.min_structures)
    except (ValueError, ShardError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(embedding_table(summary))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
