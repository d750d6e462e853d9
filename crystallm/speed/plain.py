"""The baselines: each does one row's work of the speed table as a plain script would, and gives the same answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crystallm.crystal import Crystal
from crystallm.geometry import neighbour_pairs
from crystallm.model.gpt import GPT
from crystallm.periodic.neighbours import Edges
from crystallm.refine.batch import make_batch
from crystallm.refine.diffusion import STRAIN_PER_ANG, CrystalDiffusionModel
from crystallm.refine.records import RefineConfig
from crystallm.refine.units import UnitCrystal
from crystallm.sample.constraints import Constraint, DeadEnd
from tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pymatgen.core import Structure

SYMPREC_ANG = 0.1


# ---------------------------------------------------------------- text to ids


class GreedyEncoder:
    """The longest token that the rest of the text begins with, again and again, in Python."""

    def __init__(self, vocabulary: Vocabulary):
        self.ids = {token.decode(): id_ for token, id_ in vocabulary.ids.items() if token.isascii()}
        lengths: dict[str, set[int]] = {}
        for token in self.ids:
            lengths.setdefault(token[0], set()).add(len(token))
        self.lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        ids, start = [], 0
        while start < len(text):
            for length in self.lengths[text[start]]:
                id_ = self.ids.get(text[start : start + length])
                if id_ is not None:
                    ids.append(id_)
                    start += length
                    break
        return ids


# ---------------------------------------------------------------- CIF to symmetrised CIF, and full CIFs to disk


def symmetrised_cif(cif: str) -> str:
    """pymatgen's parser, spglib's standard cell, pymatgen's writer: what published scripts prepare a corpus with."""
    from pymatgen.io.cif import CifWriter
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    structure = parse_with_pymatgen(cif)
    standard = SpacegroupAnalyzer(structure, symprec=SYMPREC_ANG).get_symmetrized_structure()
    return str(CifWriter(standard, symprec=SYMPREC_ANG))


def write_with_pymatgen(structure: Structure, path: Path) -> None:
    from pymatgen.io.cif import CifWriter

    CifWriter(structure, symprec=SYMPREC_ANG).write_file(path)


def parse_with_pymatgen(cif: str) -> Structure:
    from pymatgen.io.cif import CifParser

    return CifParser.from_str(cif).parse_structures(primitive=False)[0]


# ---------------------------------------------------------------- sampling


@torch.no_grad()
def sample_uncached(
    model: GPT,
    slot_tokens: Sequence[np.ndarray],
    prompt: Sequence[int],
    new_constraint: Callable[[], Constraint],
    seed: int,
    index: int,
    restarts: int = 0,
) -> list[int] | None:
    """One sequence by a full forward pass a token, forced ones too; None where every start met a dead end.

    The constraints and the random numbers are the engine's, so the ids are the same.
    """
    random = np.random.Generator(np.random.Philox(key=seed + (index << 64)))
    device = model.table().device
    for _ in range(restarts + 1):
        ids, constraint = list(prompt), new_constraint()
        try:
            while not constraint.finished and len(ids) < model.config.block_size:
                hidden = model(torch.tensor([ids], device=device))[0, -1]  # (C,)
                logits = (model.table() @ hidden).float()  # (vocab_size,)
                slot, token, mask = constraint.choice()
                if token < 0:
                    token = _draw(logits, slot_tokens[slot], mask, random.random())
                ids.append(token)
                constraint.advance(token)
        except DeadEnd:
            continue
        return ids
    return None


def _draw(logits: Tensor, tokens: np.ndarray, mask: np.ndarray | None, uniform: float) -> int:
    weights = torch.softmax(logits[torch.from_numpy(tokens)].double(), dim=0).cpu().numpy()
    if mask is not None:
        weights = weights * mask
    cumulative = weights.cumsum()
    return int(tokens[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])


# ---------------------------------------------------------------- refinement


@torch.no_grad()
def refine_one(model: CrystalDiffusionModel, unit: UnitCrystal, config: RefineConfig) -> Crystal:
    """One crystal at a time, its neighbours searched anew at each step."""
    batch = make_batch([unit.crystal], [unit.orbits])
    sigmas = np.geomspace(config.start_sigma_ang, model.config.sigma_min_ang, config.num_steps).tolist()
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        (crystal,) = batch.crystals()
        i, j, image, length = neighbour_pairs(crystal.lattice, crystal.frac_coords, model.config.cutoff_ang)
        vector = (crystal.frac_coords[j] + image - crystal.frac_coords[i]) @ crystal.lattice
        arrays = (torch.from_numpy(array) for array in (j, i, vector.astype(np.float32), length.astype(np.float32)))
        noise = model.denoiser(batch, Edges(*arrays), torch.tensor([sigma]), torch.tensor([config.free_cell]))
        batch = batch.moved((after - sigma) * batch.following(noise.cart))
        if config.free_cell:
            batch = batch.strained(STRAIN_PER_ANG * (after - sigma) * batch.allowed_strain(noise.strain))
    return batch.crystals()[0]


# ---------------------------------------------------------------- training


def padded_batch(sequences: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Inputs (B, T - 1) and targets (B, T - 1), -1 where there is padding."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_id)
    targets = torch.full((len(sequences), width), -1)
    for row, sequence in enumerate(sequences):
        for column, token in enumerate(sequence.tolist()):
            ids[row, column] = targets[row, column] = token
    return ids[:, :-1], targets[:, 1:]


def full_softmax_loss(model: GPT, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token over the whole vocabulary, forced tokens included."""
    logits = model(ids) @ model.table().T  # (B, T, vocab_size)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def train_step(model: GPT, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor) -> None:
    """In float32."""
    loss = full_softmax_loss(model, ids, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# ---------------------------------------------------------------- checks


def is_valid_default(cif: str) -> bool:
    """The default rules with pymatgen: volume per atom, formula, multiplicities, group found, distances."""
    from pymatgen.core import Composition
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    from crystallm.checks.geometric import VOLUMES_PER_ATOM_ANG3
    from crystallm.geometry import min_allowed_distance

    structure = parse_with_pymatgen(cif)
    low, high = VOLUMES_PER_ATOM_ANG3
    if not low <= structure.volume / len(structure) <= high:
        return False
    content = structure.composition.reduced_composition
    if not content.almost_equals(Composition(_value(cif, "_chemical_formula_sum")).reduced_composition):
        return False
    if sum(_multiplicities(cif)) != len(structure):
        return False
    found = SpacegroupAnalyzer(structure, symprec=SYMPREC_ANG).get_space_group_number()
    if found != int(_value(cif, "_symmetry_Int_Tables_number")):
        return False
    z = np.array(structure.atomic_numbers)
    allowed = min_allowed_distance(z[:, None], z)  # (n_atoms, n_atoms), Å
    first, second, _, distance = structure.get_neighbor_list(r=float(allowed.max()))
    return bool((distance >= allowed[first, second]).all())


def is_valid_crystallm(cif: str) -> bool:
    """CrystaLLM's rules as its code applies them: cell, formulas, multiplicities, bonds by CrystalNN, group symbol."""
    from pymatgen.core import Composition
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    edges = [float(_value(cif, f"_cell_length_{axis}")) for axis in "abc"]
    angles = [float(_value(cif, f"_cell_angle_{name}")) for name in ("alpha", "beta", "gamma")]
    if not all(0.5 <= edge <= 1000 for edge in edges) or not all(10 <= angle <= 170 for angle in angles):
        return False
    structure = parse_with_pymatgen(cif)
    block = re.findall(r"^data_(\S+)", cif, re.MULTILINE)[0]
    formulas = {Composition(text).reduced_formula for text in (block, _value(cif, "_chemical_formula_sum"))}
    n_atoms = Composition(_value(cif, "_chemical_formula_sum")).num_atoms * int(_value(cif, "_cell_formula_units_Z"))
    if len(formulas) > 1 or sum(_multiplicities(cif)) != n_atoms:
        return False
    if bond_score(structure) < 1:
        return False
    found = SpacegroupAnalyzer(structure, symprec=SYMPREC_ANG).get_space_group_number()
    return found == int(_value(cif, "_symmetry_Int_Tables_number"))


def bond_score(structure: Structure) -> float:
    """Share of bonds whose length lies within 32 % of what the radii lead to expect; with H, below 2.5 times that."""
    from pymatgen.analysis.local_env import CrystalNN

    neighbours = CrystalNN()
    n_bonds = n_good = 0
    for i, site in enumerate(structure):
        for neighbour in neighbours.get_nn_info(structure, i):
            j = neighbour["site_index"]
            if i == j:
                continue
            first, second = site.specie, structure[j].specie
            if abs(first.X - second.X) >= 1.7:
                cation, anion = (first, second) if first.X < second.X else (second, first)
                expected = cation.average_cationic_radius + anion.average_anionic_radius
            else:
                expected = first.atomic_radius + second.atomic_radius
            ratio = structure.get_distance(i, j) / expected
            n_bonds += 1
            n_good += ratio < 2.5 if "H" in (first.symbol, second.symbol) else 0.68 < ratio < 1.32
    return n_good / n_bonds if n_bonds else 1.0


def _value(cif: str, tag: str) -> str:
    return re.findall(rf"^{tag}\s+(.+?)\s*$", cif, re.MULTILINE)[0].strip("'\"")


def _multiplicities(cif: str) -> list[int]:
    """The third column of the loop that our writer ends a CIF with."""
    sites = cif.partition("_atom_site_occupancy\n")[2]
    return [int(line.split()[2]) for line in sites.splitlines() if line.strip()]


# ---------------------------------------------------------------- matching


@functools.cache
def _benchmark_matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)


def rms_distance(predicted_cif: str, reference_cif: str) -> float | None:
    """As the published benchmark does: both read by pymatgen, then matched; None where they do not match."""
    structures = (parse_with_pymatgen(cif) for cif in (predicted_cif, reference_cif))
    found = _benchmark_matcher().get_rms_dist(*structures)
    return None if found is None else float(found[0])
