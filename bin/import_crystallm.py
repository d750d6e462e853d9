"""Turn a released CrystaLLM model into a checkpoint folder:  python bin/import_crystallm.py ckpt.pt models/crystallm

Every command takes the folder by --model. bin/sample.py takes ckpt.pt itself, too; the folder is a third of its size,
since it leaves the optimizer out, and loads faster.
"""

from __future__ import annotations

import argparse

from crystallm.model.checkpoint import import_crystallm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="CrystaLLM's ckpt.pt")
    parser.add_argument("out", help="folder; an earlier import is replaced")
    options = parser.parse_args()
    try:
        folder = import_crystallm(options.checkpoint, options.out)
    except (ValueError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    print(f"{sum(file.stat().st_size for file in folder.iterdir()):,} bytes written to {folder}")


if __name__ == "__main__":
    main()
