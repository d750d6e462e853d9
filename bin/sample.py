"""Draw crystal structures:  python bin/sample.py --prompt "Na Cl" --num 8 --out nacl/

PROMPT is a formula (NaCl, "Na Cl", Fe2O3; Na4Cl4 asks for four formula units in the conventional cell), a chemical
system (Li-Fe-O), the beginning of a canonical CIF, a file with one of these a line, or nothing at all.

With --rank formation_energy (or band_gap, ...) the crystals come in the order of the predicted property.
With --search the structures drawn are clustered and an answer is selected among them:
  python bin/sample.py --prompt "Ca Ti O3" --search self_consistency --num 20
  python bin/sample.py --prompt "Ca Ti O3" --search mcts --num 200 --scorer min:volume_per_atom
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from crystallm.sample.generate import GenerateConfig
from crystallm.sample.report import run
from crystallm.sample.search import SEARCHES, SearchConfig
from crystallm.sample.steering import read_assignments

if TYPE_CHECKING:
    from crystallm.sample.ranking import Ranking


def parse_arguments() -> tuple[argparse.ArgumentParser, GenerateConfig, SearchConfig | None, Ranking | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", help="what to make; left out: anything")
    parser.add_argument("--space-group", help="symbol in any spelling, or number")
    parser.add_argument("--formula-units", type=int, help="in the primitive cell")
    parser.add_argument(
        "--property", dest="properties", action="append", metavar="NAME=VALUE", help="density=2.1, ...; repeatable"
    )
    parser.add_argument("--cell", metavar="a=4.0,c=6.1,...", help="numbers of the conventional cell, any of the six")
    parser.add_argument("--prototype", help="fcc, rock_salt, perovskite, ...: space group and sites")
    parser.add_argument("--guidance", type=float, default=1.0, help="above 1: follow --property more closely (2 to 3)")
    parser.add_argument("--num", type=int, default=8, help="samples for each prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 always takes the most likely token")
    parser.add_argument("--top-k", type=int, help="draw among the k most likely tokens")
    parser.add_argument("--top-p", type=float, help="draw among the most likely tokens that hold this probability")
    parser.add_argument("--seed", type=int, help="same seed, same text; left out: a fresh one, printed")
    parser.add_argument("--constraints", choices=("none", "syntax", "full"), help="default: the strongest there are")
    parser.add_argument("--min-distance", dest="min_distance_ang", type=float, help="Å; by default by covalent radii")
    parser.add_argument("--restarts", type=int, default=20, help="dead ends drawn again before a sample is given up")
    parser.add_argument("--until-valid", action="store_true", help="go on until NUM passed the checks")
    parser.add_argument("--max-draws", type=int, help="give up then (default 20 NUM)")
    parser.add_argument("--unique", action="store_true", help="reject what matches an earlier one")
    parser.add_argument("--rules", choices=("default", "crystallm", "cdvae", "none"), default="default", help="checks")
    parser.add_argument("--refine", action="store_true", help="let the diffusion model go over the crystals")
    parser.add_argument("--refiner", help="its checkpoint; left out: the bundled one")
    parser.add_argument("--rank", help="a property: formation_energy, band_gap, ...; max:NAME from the highest")
    parser.add_argument("--predictor", help="checkpoint that predicts it; left out: the bundled one")
    parser.add_argument("--keep-rejected", action="store_true", help="write the rejected ones too")
    parser.add_argument("--out", help="folder, .tar or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    parser.add_argument("--model", help="checkpoint folder, or a CrystaLLM ckpt.pt; left out: the bundled model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="the latter: on a GPU")
    parser.add_argument("--batch", type=int, default=256, help="sequences at once")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw and check, beyond some hundred samples"
    )
    parser.add_argument("--known", help="index of known crystals; left out: the model's own")
    group = parser.add_argument_group("search", "what more than one sample is drawn for; the guide says more")
    group.add_argument("--search", dest="name", choices=tuple(SEARCHES), help="NUM counts by stratum, or rollouts")
    group.add_argument("--select", help="likelihood, self_consistency, ... or a score; default: as the search does")
    group.add_argument("--max-formula-units", type=int, help="search over formula units: up to so many (8)")
    group.add_argument("--groups", type=int, help="search over space groups: so many of the likeliest (10)")
    group.add_argument("--width", type=int, help="beam, and children of a node of the tree (10)")
    group.add_argument("--branch", choices=("choices", "tokens"), help="beam: where it branches (choices)")
    group.add_argument("--policy", choices=("puct", "uct", "greedy"), help="tree (puct)")
    group.add_argument("--exploration", type=float, help="tree: c of its policy (puct 5, uct 1.41)")
    group.add_argument("--leaves", type=int, help="tree: rollouts at once (16)")
    group.add_argument(
        "--scorer",
        help="tree: likelihood, density, volume_per_atom, a predicted property, module:function; min:... too",
    )
    arguments = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    asked = {field.name: arguments.pop(field.name) for field in fields(SearchConfig) if field.name in arguments}
    rank, predictor = arguments.pop("rank", None), arguments.pop("predictor", None)
    try:
        if "properties" in arguments:
            arguments["properties"] = read_assignments(arguments["properties"])
        if "cell" in arguments:
            arguments["cell"] = read_assignments(arguments["cell"].split(","))
        if asked and "name" not in asked:
            raise ValueError(f"--{next(iter(asked)).replace('_', '-')} goes with --search")
        if asked and arguments.get("refine"):
            raise ValueError("--refine goes without --search; refine what a search wrote with bin/refine.py")
        if rank and asked:
            raise ValueError("--rank goes without --search; a search is led by --scorer, or by --select")
        if predictor and not rank:
            raise ValueError("--predictor goes with --rank")
        ranking = None
        if rank:
            from crystallm.sample.ranking import Ranking  # needs libraries that drawing does without

            ranking = Ranking.find(rank, predictor)
        return parser, GenerateConfig(**arguments), SearchConfig(**asked) if asked else None, ranking
    except (ValueError, FileNotFoundError) as err:
        parser.error(str(err))


if __name__ == "__main__":
    parser, config, settings, ranking = parse_arguments()
    try:
        run(config, settings, ranking)
    except (ValueError, FileNotFoundError, FileExistsError) as err:
        parser.error(str(err))
