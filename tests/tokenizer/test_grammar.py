import pickle
import random

import numpy as np
import pytest

from tokenizer import CIFTokenizer, Grammar, GrammarError

SLOTS = {"start", "formula", "formula_next", "formula_after_count", "formula_units", "space_group", "length", "angle"}
SLOTS |= {"site_element", "wyckoff", "coordinate", "site_element_or_end", "property_value"}
SLOTS |= {f"start_after_{name}" for name in ("band_gap_ev", "formation_energy_ev_per_atom", "e_above_hull_ev_per_atom")}
SLOTS |= {"start_after_density_g_per_cm3"}  # after volume_per_atom_ang3, the last one, data_ is forced


def test_slots_of_the_example_by_hand(tok, grammar, catio3):
    slots = ["start", "formula", "formula_next", "formula_next", "formula_next", "formula_after_count", "formula_units"]
    slots += ["", "space_group", *["", "length"] * 3, *["", "angle"] * 3, "", "site_element"]
    slots += ["wyckoff", *["coordinate"] * 3, "site_element_or_end"] * 3
    found = grammar.slots(tok.encode(catio3))
    assert [grammar.slot_names[slot] if slot >= 0 else "" for slot in found] == slots
    assert found.dtype == np.int16


def test_slots_and_their_tokens(tok, grammar):
    assert set(grammar.slot_names) == SLOTS
    tokens = dict(zip(grammar.slot_names, grammar.slot_tokens, strict=True))
    for name in ("length", "angle", "coordinate", "wyckoff", "space_group", "property_value"):
        assert np.array_equal(tokens[name], tok.vocabulary.classes[name])
    assert len(tokens["formula_next"]) == 118 + 998 + 1  # a count of 1 is not written
    assert len(tokens["formula_after_count"]) == 118 + 1
    assert len(tokens["site_element_or_end"]) == 118 + 1
    assert len({tuple(ids) for ids in grammar.slot_tokens}) == len(grammar.slot_names)


def test_fast_path_equals_steps(tok, grammar, canonical_lexemes):
    for lexemes in canonical_lexemes[:50]:
        ids = tok.encode("".join(lexemes))
        states, state = [], grammar.start
        for id_ in ids:
            states.append(state)
            allowed = grammar.allowed(state)
            assert id_ in allowed
            assert grammar.forced_token[state] == (id_ if len(allowed) == 1 else -1)
            slot = grammar.slot_of_state[state]
            assert (slot == -1) == (len(allowed) == 1)
            assert slot == -1 or np.array_equal(grammar.slot_tokens[slot], allowed)
            state = grammar.step(state, id_)
        assert grammar.is_final(state) and grammar.state_after(ids) == state and len(grammar.allowed(state)) == 0
        assert grammar.states(ids).tolist() == states
        assert grammar.slots(ids).tolist() == grammar.slot_of_state[states].tolist()


def test_many_structures_in_a_row(tok, grammar, canonical_lexemes):
    batch = tok.encode_batch(["".join(lexemes) for lexemes in canonical_lexemes])
    flat = grammar.slots(np.concatenate(batch), many=True)
    assert np.array_equal(flat, np.concatenate([grammar.slots(ids) for ids in batch]))
    assert grammar.is_final(grammar.state_after(np.concatenate(batch), many=True))
    with pytest.raises(GrammarError, match="in state 'end': expected nothing more"):
        grammar.slots(np.concatenate(batch))


def test_allowed_is_exactly_what_step_takes(tok, grammar):
    rng = random.Random(2)
    for state in range(grammar.n_states):
        allowed = set(grammar.allowed(state).tolist())
        for id_ in {*range(256), *rng.choices(range(tok.vocab_size), k=300), *list(allowed)[:300]}:
            if id_ in allowed:
                assert 0 <= grammar.step(state, id_) < grammar.n_states
            else:
                with pytest.raises(GrammarError):
                    grammar.step(state, id_)


def test_random_walks_are_texts_that_encode_to_themselves(tok, grammar):
    rng = random.Random(1)
    for _ in range(100):
        ids, state = [], grammar.start
        while not grammar.is_final(state):
            ids.append(int(rng.choice(grammar.allowed(state))))
            if grammar.state_names[state] == "site_element_or_end" and len(ids) > 60:
                ids[-1] = tok.end_id
            state = grammar.step(state, ids[-1])
        assert tok.encode(tok.decode(ids)) == ids


def test_properties_stand_in_order_and_once(tok, grammar):
    text = "# band_gap_ev +1.10\n# volume_per_atom_ang3 +12.00\ndata_"
    assert grammar.state_names[grammar.state_after(tok.encode(text))] == "formula"
    for wrong in ("# density_g_per_cm3 +1.00\n# band_gap_ev +1.10\n", "# band_gap_ev +1.10\n# band_gap_ev +1.10\n"):
        with pytest.raises(GrammarError, match=r"position 2: .*'# band_gap_ev '.*expected"):
            grammar.states(tok.encode(wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaCl", r"position 0: token \d+ \('Na'\) in state 'start': expected .*'data_'"),
        ("data_CaO1\n", r"position 3: token 49 \('1'\) in state 'formula_next': expected formula_element .* or count"),
        ("data_CaO1000", r"position 4: token 48 \('0'\) in state 'formula_after_count'"),
        ("data_\n_cell_length_a ", r"position 1: .* in state 'formula'"),
        ("data_NaCl\n_crystallm_primitive_formula_units 2\n_symmetry_space_group_name_H-M\n", "expected space_group"),
    ],
)
def test_errors_say_where_what_and_wanted(tok, grammar, text, message):
    with pytest.raises(GrammarError, match=message):
        grammar.slots(tok.encode(text))


def test_error_carries_its_fields_and_pickles(tok, grammar):
    with pytest.raises(GrammarError) as caught:
        grammar.slots([*tok.encode("data_Na"), tok.vocab_size])
    assert (caught.value.position, caught.value.token) == (2, tok.vocab_size)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.position == 2
    with pytest.raises(GrammarError, match="no id of the vocabulary"):
        grammar.step(grammar.start, -1)


def test_pickles_and_reads_nothing(tok, grammar):
    again = pickle.loads(pickle.dumps(grammar))
    assert again.state_names == grammar.state_names
    assert grammar.slots([]).shape == (0,) and grammar.state_after([]) == grammar.start
    assert Grammar(CIFTokenizer("cif")).slot_names == grammar.slot_names
