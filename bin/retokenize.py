#!/usr/bin/env python
"""Token shards in another vocabulary:  python bin/retokenize.py data/mine data/mine_digits --vocabulary digits

To compare vocabularies on the same structures: whole (one token a number, as in cif, but without its grammar), digits
(numbers digit by digit), bin_offset (two tokens a number: a bin and the offset in it), bpe and bpe_gpt2 (byte pairs
merged by count, learned here, within words or within GPT-2's pieces), characters. To compare other texts with whole:
cell_last (the cell behind the sites), fine_grid (coordinates of four decimals, read from the CIFs that --records
names). Train with  data.path=OUT
vocabulary=OUT/vocabulary.json model.loss=full  and a model.block_size of at least the longest structure, which is
printed; sample with --constraints none.

To compare the canonical description with random ones:  --vocabulary cif --random-descriptions 4
"""

from __future__ import annotations

import argparse

from crystallm.data.retokenize import NAMES, retokenize
from crystallm.data.shards import ShardError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of finished shards")
    parser.add_argument("out", help="new folder")
    parser.add_argument("--vocabulary", required=True, help=f"{', '.join(NAMES)}, or a vocabulary file")
    parser.add_argument("--longest", type=int, help="leave out structures of more tokens in the source's vocabulary")
    parser.add_argument("--merges", type=int, default=2000, help="of bpe")
    parser.add_argument("--random-descriptions", type=int, default=0, help="of each crystal, instead of its own text")
    parser.add_argument("--seed", type=int, default=0, help="of the random descriptions")
    parser.add_argument("--records", nargs="+", default=(), help="of fine_grid: folders, CIFs, tables, archives")
    options = vars(parser.parse_args())
    options["n_merges"] = options.pop("merges")
    try:
        meta = retokenize(**options)
    except (ShardError, ValueError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    for split, count in meta["counts"].items():
        mean = count["tokens"] / max(1, count["structures"])
        left_out = meta["retokenized_from"]["left_out"][split]
        print(
            f"{split}: {count['structures']:,} structures, {mean:.1f} tokens each, longest {count['longest']:,}; ",
            end="",
        )
        print(f"{left_out:,} left out as too long")
    for reason, count in meta["retokenized_from"]["not_described"].items():
        print(f"{count:,} without a description: {reason}")


if __name__ == "__main__":
    main()
