"""Write a model for Hugging Face `transformers`:  python bin/export_hf.py runs/mine --out shared/mine

The folder holds the weights of a stock class, the tokenizer, the grammar for servers, a model card, and the checkpoint
itself, so that bin/sample.py --model takes the folder, too, or hf:org/name once it is uploaded:

    hf upload org/name shared/mine
"""

from __future__ import annotations

import argparse

from crystallm.model.hf import DTYPES, export_hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, or a run's folder: its best")
    parser.add_argument("--out", required=True, help="folder; replaced if it holds an exported model")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the stock weights")
    options = parser.parse_args()
    try:
        folder = export_hf(options.model, options.out, options.dtype)
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{n_bytes:,} bytes written to {folder}")


if __name__ == "__main__":
    main()
