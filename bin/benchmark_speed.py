"""What each step costs on this machine:  python bin/benchmark_speed.py [corpus.parquet] --num 300 --out speed.json

First the ceilings (matrix products at the model's shapes, memory copy), then a row for each step: encode, prepare,
loader, train, sample, draw (by several processes, with files and checks), refine, write, filter, evaluate, match.
Beside each stands a plain baseline of the same work, measured in the same process, whose results are compared with
ours; the share of the ceiling; and the peak of memory. Without a corpus it measures on the demo corpus. CPU rates are
per second of CPU time, which other work disturbs little.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crystallm.output import check_output
from crystallm.speed.measure import measure_ceilings, measure_speed
from crystallm.speed.rows import ROWS, SHAPES, SpeedConfig
from crystallm.speed.tables import speed_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", help="corpus, as bin/prepare_data.py reads it; left out: the demo corpus")
    parser.add_argument("--num", type=int, default=300, help="structures")
    parser.add_argument("--rows", help=f"some of {','.join(ROWS)}; left out: all")
    parser.add_argument("--model", help="checkpoint; left out: the bundled model")
    parser.add_argument("--model-shape", help=f"random weights: {', '.join(SHAPES)} or layers,heads,width")
    parser.add_argument("--device", default="cpu", help="of training and sampling: cpu or cuda")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256, help="sequences sampled at once")
    parser.add_argument("--workers", type=int, help="processes of the row draw; left out: one a core")
    parser.add_argument("--draws", type=int, default=1, help="structures that this row draws for each of the corpus")
    parser.add_argument("--checks", default="default", help="that this row makes: default, ..., none")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of a training batch")
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--compile", action="store_true", help="the blocks, in training")
    parser.add_argument("--plain-num", type=int, help="structures of each baseline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--overwrite", action="store_true", help="replace it if it is there")
    options = vars(parser.parse_args())
    out, overwrite = options.pop("out"), options.pop("overwrite")
    try:
        if out is not None:
            check_output(out, filter(None, [options["path"]]), overwrite)
        config = SpeedConfig(**options | {"rows": tuple(options["rows"].split(",")) if options["rows"] else ()})
    except (ValueError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    result = {"ceilings": measure_ceilings(config)} | measure_speed(config)
    print(speed_table(result))
    if out is not None:
        Path(out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
