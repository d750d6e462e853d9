"""Draw crystal structures:  python bin/sample.py --prompt "Na Cl" --num 8 --out nacl/

PROMPT is a formula (NaCl, "Na Cl", Fe2O3; Na4Cl4 asks for four formula units in the conventional cell), a chemical
system (Li-Fe-O), the beginning of a canonical CIF, a file with one of these a line, or nothing at all.

With --rank formation_energy (or band_gap, ...) the crystals come in the order of the predicted property.
With --search the structures drawn are clustered and an answer is selected among them:
  python bin/sample.py --prompt "Ca Ti O3" --search self_consistency --num 20
  python bin/sample.py --prompt "Ca Ti O3" --search mcts --num 200 --scorer min:volume_per_atom
The exit status is 1 if no crystal is kept.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from crystallm.sample.generate import DRAWS_PER_VALID, GenerateConfig
from crystallm.sample.mcts import MCTSConfig
from crystallm.sample.report import run
from crystallm.sample.search import SEARCHES, SearchConfig, searches_with
from crystallm.sample.steering import read_assignments

if TYPE_CHECKING:
    from crystallm.sample.ranking import Ranking


DRAW, SEARCH = GenerateConfig, SearchConfig  # for their defaults


def parse_arguments() -> tuple[argparse.ArgumentParser, GenerateConfig, SearchConfig | None, Ranking | None]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that what was typed is known
    )
    parser.add_argument("--prompt", help="what to make; left out: anything")
    parser.add_argument("--space-group", help="symbol in any spelling, or number")
    parser.add_argument("--formula-units", type=int, help="in the primitive cell")
    parser.add_argument(
        "--property", dest="properties", action="append", metavar="NAME=VALUE", help="density=2.1, ...; repeatable"
    )
    parser.add_argument("--cell", metavar="a=4.0,c=6.1,...", help="numbers of the conventional cell, any of the six")
    parser.add_argument("--prototype", help="fcc, rock_salt, perovskite, ...: space group and sites")
    parser.add_argument(
        "--guidance",
        type=float,
        help=f"above 1: follow --property more closely, at 2 to 3 (default: {DRAW.guidance})",
    )
    parser.add_argument("--num", type=int, help=f"samples for each prompt (default: {DRAW.num})")
    parser.add_argument(
        "--temperature", type=float, help=f"0 always takes the most likely token (default: {DRAW.temperature})"
    )
    parser.add_argument("--top-k", type=int, help="draw among the k most likely tokens (default: all)")
    parser.add_argument(
        "--top-p", type=float, help="draw among the most likely tokens that hold this probability (default: all)"
    )
    parser.add_argument("--seed", type=int, help="same seed, same text; left out: a fresh one, printed")
    parser.add_argument("--constraints", choices=("none", "syntax", "full"), help="default: the strongest there are")
    parser.add_argument("--min-distance", dest="min_distance_ang", type=float, help="Å; by default by covalent radii")
    parser.add_argument(
        "--restarts",
        type=int,
        help=f"dead ends drawn again before a sample is given up (default: {DRAW.restarts})",
    )
    parser.add_argument("--until-valid", action="store_true", help="go on until NUM passed the checks")
    parser.add_argument("--max-draws", type=int, help=f"give up then (default: {DRAWS_PER_VALID} NUM)")
    parser.add_argument("--unique", action="store_true", help="reject what matches an earlier one, of any prompt")
    parser.add_argument("--novel", action="store_true", help="reject what is known: see --known")
    parser.add_argument(
        "--rules", choices=("default", "crystallm", "cdvae", "none"), help=f"checks (default: {DRAW.rules})"
    )
    parser.add_argument("--refine", action="store_true", help="let the diffusion model go over the crystals")
    parser.add_argument("--refiner", help="its checkpoint; left out: the bundled one")
    parser.add_argument("--rank", help="a property: formation_energy, band_gap, ...; max:NAME from the highest")
    parser.add_argument("--predictor", help="checkpoint that predicts it; left out: the bundled one")
    parser.add_argument("--keep-rejected", action="store_true", help="write the rejected ones too")
    parser.add_argument("--out", help="folder, .tar or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    parser.add_argument("--model", help="checkpoint folder, or a CrystaLLM ckpt.pt; left out: the bundled model")
    parser.add_argument("--device", help=f"auto, cpu, cuda or mps (default: {DRAW.device})")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help=f"the latter: on a GPU, mostly (default: {DRAW.dtype})",
    )
    parser.add_argument("--batch", type=int, help=f"sequences at once (default: {DRAW.batch})")
    parser.add_argument(
        "--workers",
        type=int,
        help=f"processes that draw and check, beyond some hundred samples (default: {DRAW.workers}, this one)",
    )
    parser.add_argument(
        "--known",
        help="known crystals: CIFs, a table, an archive, prepared data, known.npz; left out: those that the model was "
        "trained on",
    )
    group = parser.add_argument_group("search", "what more than one sample is drawn for; the guide says more")
    group.add_argument("--search", dest="name", choices=tuple(SEARCHES), help="NUM counts by stratum, or rollouts")
    group.add_argument("--select", help="likelihood, self_consistency, ... or a score; default: as the search does")
    group.add_argument(
        "--max-formula-units",
        type=int,
        help=f"search over formula units: up to so many (default: {SEARCH.max_formula_units})",
    )
    group.add_argument(
        "--groups", type=int, help=f"search over space groups: so many of the likeliest (default: {SEARCH.groups})"
    )
    group.add_argument("--width", type=int, help=f"beam, and children of a node of the tree (default: {SEARCH.width})")
    group.add_argument(
        "--branch", choices=("choices", "tokens"), help=f"beam: where it branches (default: {SEARCH.branch})"
    )
    group.add_argument("--policy", choices=("puct", "uct", "greedy"), help=f"tree (default: {SEARCH.policy})")
    c_of = ", ".join(f"{policy} {MCTSConfig(policy=policy).c:.3g}" for policy in ("puct", "uct"))
    group.add_argument("--exploration", type=float, help=f"tree: c of its policy (default: {c_of})")
    group.add_argument("--leaves", type=int, help=f"tree: rollouts at once (default: {SEARCH.leaves})")
    group.add_argument(
        "--scorer",
        help="tree: likelihood, density, volume_per_atom, a predicted property, module:function; min:... too "
        f"(default: {SEARCH.scorer})",
    )
    parsed, rest = parser.parse_known_args()
    if rest:
        hint = f'a formula goes with --prompt: --prompt "{" ".join(rest)}"'
        if rest[0].startswith("-"):
            hint = "--help lists them"
        parser.exit(2, f"{parser.prog}: {rest[0]!r} is no option; {hint}\n")
    arguments = vars(parsed)
    asked = {field.name: arguments.pop(field.name) for field in fields(SearchConfig) if field.name in arguments}
    rank, predictor = arguments.pop("rank", None), arguments.pop("predictor", None)
    try:
        if "properties" in arguments:
            arguments["properties"] = read_assignments(arguments["properties"])
        if "cell" in arguments:
            arguments["cell"] = read_assignments(arguments["cell"].split(","))
        refuse_ignored(asked.get("name"), [*asked] if "name" not in asked else [*asked, *arguments])
        if rank and asked:
            raise ValueError("--rank goes without --search; a search is led by --scorer, or by --select")
        if predictor and not rank:
            raise ValueError("--predictor goes with --rank")
        ranking = None
        if rank:
            from crystallm.sample.ranking import Ranking  # needs libraries that drawing does without

            ranking = Ranking.find(rank, predictor)
        return parser, GenerateConfig(**arguments), SearchConfig(**asked) if asked else None, ranking
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")


def refuse_ignored(search: str | None, typed: list[str]) -> None:
    """Raises ValueError for a setting that this search does not look at."""
    for name in typed:
        if search not in (fitting := searches_with(name)):
            option = f"--{name.replace('_', '-')}"
            got = "" if search is None else f"; {search} does not look at it"
            raise ValueError(f"{option} goes with --search {', '.join(fitting)}{got}")


if __name__ == "__main__":
    parser, config, settings, ranking = parse_arguments()
    try:
        tally = run(config, settings, ranking)
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
    if not (tally.counts.n_valid or config.keep_rejected):
        raise SystemExit(1)
