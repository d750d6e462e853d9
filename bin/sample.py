"""Draw crystal structures:  python bin/sample.py --prompt "Na Cl" --num 8 --out nacl/

PROMPT is a formula (NaCl, "Na Cl", Fe2O3; Na4Cl4 asks for four formula units in the conventional cell), a chemical
system (Li-Fe-O), the beginning of a canonical CIF, a file with one of these a line, or nothing at all.
"""

from __future__ import annotations

import argparse

from crystallm.sample.generate import GenerateConfig
from crystallm.sample.report import run


def parse_arguments() -> tuple[argparse.ArgumentParser, GenerateConfig]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", help="what to make; left out: anything")
    parser.add_argument("--space-group", help="symbol in any spelling, or number")
    parser.add_argument("--formula-units", type=int, help="in the primitive cell")
    parser.add_argument("--num", type=int, default=8, help="samples for each prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 always takes the most likely token")
    parser.add_argument("--top-k", type=int, help="draw among the k most likely tokens")
    parser.add_argument("--top-p", type=float, help="draw among the most likely tokens that hold this probability")
    parser.add_argument("--seed", type=int, help="same seed, same text; left out: a fresh one, printed")
    parser.add_argument("--constraints", choices=("none", "syntax", "full"), default="full")
    parser.add_argument("--min-distance", dest="min_distance_ang", type=float, help="Å; by default by covalent radii")
    parser.add_argument("--restarts", type=int, default=20, help="dead ends drawn again before a sample is given up")
    parser.add_argument("--until-valid", action="store_true", help="go on until NUM passed the checks")
    parser.add_argument("--max-draws", type=int, help="give up then (default 20 NUM)")
    parser.add_argument("--unique", action="store_true", help="reject what matches an earlier one")
    parser.add_argument("--rules", choices=("default", "crystallm", "cdvae", "none"), default="default", help="checks")
    parser.add_argument("--keep-rejected", action="store_true", help="write the rejected ones too")
    parser.add_argument("--out", help="folder, .tar or .parquet")
    parser.add_argument("--model", help="checkpoint folder; left out: the bundled model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--batch", type=int, default=256, help="sequences at once")
    parser.add_argument("--workers", type=int, default=0, help="processes for the checks")
    parser.add_argument("--known", help="index of known crystals; left out: the model's own")
    try:
        return parser, GenerateConfig(**vars(parser.parse_args()))
    except ValueError as err:
        parser.error(str(err))


if __name__ == "__main__":
    parser, config = parse_arguments()
    try:
        run(config)
    except (ValueError, FileNotFoundError, FileExistsError) as err:
        parser.error(str(err))
