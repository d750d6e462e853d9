from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import crystallm
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.resources import resource_path
from crystallm.sample.along import choices_along, constrained_choices
from crystallm.sample.engine import Engine, Job
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.rules import Rules
from tokenizer import CIFTokenizer
from tokenizer.pieces import digits_spec
from tokenizer.vocabulary import vocabulary_from_spec

ROCK_SALT = """data_NaCl
_crystallm_primitive_formula_units 1
_symmetry_space_group_name_H-M Fm-3m
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 90.0
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na a 0.000 0.000 0.000
Cl b 0.500 0.500 0.500
"""


def test_of_rock_salt_formula_units_group_length_and_first_letter_are_left(tokenizer: CIFTokenizer, rules: Rules):
    ids = np.array(tokenizer.encode(ROCK_SALT))
    left = choices_along(ids, rules)
    words = [tokenizer.token(int(ids[place])).strip() for place in left]
    # Four formula slots, then what a crystallographer is free to say of rock salt. Cl gets b, as a is taken and 4c …
    # are too many atoms; every coordinate is fixed.
    assert words[-4:] == ["1", "Fm-3m", "5.64", "a"]
    assert not {"90.0", "0.000", "0.500", "b"} & set(words)


def test_masks_let_the_text_itself_through(tokenizer: CIFTokenizer, rules: Rules):
    demo = pd.read_parquet(resource_path("resources/demo/demo.parquet"))
    for cif in demo.cif[::150]:
        ids = np.array(tokenizer.encode(crystallm.canonicalize(cif)))
        slots = rules.grammar.slots(ids)
        for place, mask in choices_along(ids, rules).items():
            assert mask is None or mask[rules.grammar.slot_tokens[slots[place]] == ids[place]].all()


def test_what_the_constraints_forbid_is_asked_of_the_grammar(tokenizer: CIFTokenizer, rules: Rules):
    squeezed = ROCK_SALT.replace(" 5.64", " 1.20")  # no Na fits
    ids = np.array(tokenizer.encode(squeezed))
    slots = rules.grammar.slots(ids)
    length = int(np.flatnonzero(slots == rules.grammar.slot_names.index("length"))[0])
    left = choices_along(ids, rules)
    assert [place for place in left if place >= length] == [k for k in range(length, len(ids)) if slots[k] >= 0]
    assert all(left[place] is None for place in left if place >= length)


def test_loss_is_the_sampler_s_own_log_probability(tokenizer: CIFTokenizer, rules: Rules, random_gpt: GPT):
    """The engine counts log p under the grammar and the log of the mass that masks cut; their difference is trained."""
    engine = Engine(random_gpt, [*rules.grammar.slot_tokens, np.arange(tokenizer.vocab_size)], batch=8)
    ids, new_constraint = begin(parse_prompt("Na Cl"), rules, "full")
    samples = list(engine.run([Job(k, ids, new_constraint, 20) for k in range(8)], seed=0))
    ended = [one for one in samples if one.stopped == "end"]
    assert len(ended) >= 4
    sequences = [np.array(one.ids) for one in ended]
    given = [one.n_prompt for one in ended]
    batch = make_batch(sequences, random_gpt.spec, given, choices=constrained_choices(tokenizer))
    with torch.no_grad():
        total = float(random_gpt.loss(batch).total)
    assert total == pytest.approx(-sum(one.log_likelihood - one.log_mass for one in ended), rel=1e-4)
    free = make_batch(sequences, random_gpt.spec, given)
    assert len(batch.targets) < len(free.targets)


def test_soft_targets_do_not_go_with_it(tokenizer: CIFTokenizer):
    with pytest.raises(ValueError, match="choose one of the two"):
        GPTConfig(loss="constrained", soft_length=2)
    with pytest.raises(ValueError, match="'digits'"):
        constrained_choices(CIFTokenizer(vocabulary_from_spec(digits_spec())))
