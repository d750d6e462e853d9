"""Crystals from noise:  python bin/diffuse.py --formula NaCl --formula-units 4 --cell 5.64 --num 8 --out generated/

With a model that is there (--model; left out: the bundled one), or the whole way, training first:
  python bin/diffuse.py --train config/refiner_tutorial.yaml --species "Al Al Al Al" --cell 4.1 --num 20
A run that --train finds finished is not trained again. Without --cell the cell is generated, too. Without --species
and --formula each structure takes the atoms of a random crystal of the model's training, or of --compositions; with
--cell of one that has about its volume.
Each structure is written as .npz and .cif into the folder OUT, all of them as one OUT_DATE_FIRST-LAST.parquet beside
it, which bin/evaluate_cifs.py and others take. Numbers go on after those of the same day; nothing is replaced.
"""

from __future__ import annotations

import argparse
from typing import get_args

from crystallm.config import load_config
from crystallm.refine.diffusion import Sampler
from crystallm.sample.diffused import DiffuseConfig, read_species, read_training_cells, run
from crystallm.sample.refined import load
from crystallm.training.refiner import RefinerRunConfig, train_refiner

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    atoms = parser.add_mutually_exclusive_group()
    atoms.add_argument("--species", help='each atom in the cell, as in "Na Na Cl Cl"')
    atoms.add_argument("--formula", help="instead, with the number of its units in the cell")
    atoms.add_argument("--compositions", metavar="FOLDER", help="draw from the train split of these token shards")
    parser.add_argument("--formula-units", type=int, help="of --formula, in the cell (default: 1)")
    parser.add_argument("--cell", nargs="+", type=float, metavar="X", help="a b c alpha beta gamma, Å and °; a: a cube")
    parser.add_argument("--num", type=int, default=DiffuseConfig.num, help="structures (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of denoising (default: all of the model's schedule)")
    parser.add_argument(
        "--sampler", choices=get_args(Sampler), default=DiffuseConfig.sampler, help="(default: %(default)s)"
    )
    parser.add_argument("--corrector-steps", type=int, help="at each step of predictor_corrector (default: 1)")
    parser.add_argument(
        "--candidates",
        type=int,
        help="drawn for each structure, with translations within a given cell; the best known is kept. "
        "0: one, in the cell as it is. Left out: 8 in a given cell, else 0",
    )
    parser.add_argument("--seed", type=int, help="same seed, same crystals; left out: a fresh one, printed and stored")
    parser.add_argument("--rules", choices=("default", "crystallm", "cdvae"), default="default", help="checks")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="checkpoint of a diffusion model, or the folder of its run")
    source.add_argument("--train", nargs="+", metavar="ARGUMENT", help="train first: YAML files and key=value")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--out", default="generated", help="folder (default: %(default)s); the .parquet stands beside it"
    )
    target.add_argument("--no-save", action="store_true", help="write nothing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    given = parser.parse_args()
    try:
        atoms_given = (given.species, given.formula, given.formula_units)
        species = None if atoms_given == (None, None, None) else read_species(*atoms_given)
        cell = given.cell and tuple(given.cell)
        sampling = (given.steps, given.sampler, given.corrector_steps, given.seed)
        config = DiffuseConfig(species, cell, given.num, *sampling, given.candidates, given.rules)
        if given.train:
            training = load_config(RefinerRunConfig, given.train)
            if train_refiner(training) == "interrupted":
                parser.exit(143, f"{parser.prog}: stopped while training; the same command goes on\n")
            given.model = training.out
        model, info = load(given.model, given.device)
        if given.compositions:
            model.training_cells = read_training_cells(given.compositions)
        print(run(model, info, config, None if given.no_save else given.out))
    except (ValueError, ImportError, OSError) as err:
        parser.exit(2, f"{parser.prog}: {err}\n")
