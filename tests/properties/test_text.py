"""The word encoder: what a token stands for, numbers that know their value, padding, errors."""

from __future__ import annotations

import math
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crystallm.properties import text as module
from crystallm.properties.description import describe
from crystallm.properties.text import WordEncoder, tokenize, vocabulary
from crystallm.properties.wordings import WORDINGS

VOCABULARY_HASH = 1270429964
NAMES = {id_: name for name, id_ in vocabulary().items()}


def names(text: str) -> list[str]:
    tokens = tokenize(text)
    return [
        NAMES[id_] if math.isnan(value) else f"{NAMES[id_]} {value:g}"
        for id_, value in zip(tokens.ids, tokens.values, strict=True)
    ]


@pytest.fixture
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(width=32, n_layer=2, n_head=4).eval()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Na2Cl is Fm-3m (number 225).", ["Na", "#integer 2", "Cl", "@225", "number", "#integer 225", "."]),
        ("Na (+1) at 4a: 6 O at 1.95 to 1.98 Å", ["Na", "#signed 1", "at", "#a 4", ":", "#integer 6", "O", "at",
                                                 "#length 1.95", "to", "#length 1.98"]),
        ("5.32 g/cm3, 12.5 Å3, 119.8°, 2.23", ["#density 5.32", "#volume 12.5", "#angle 119.8", "#decimal 2.23"]),
        ("a post-transition metal", ["post-transition", "metal"]),
        ("A 3-fold K2NiF4-type", ["#integer 3", "-", "fold", "K", "#integer 2", "Ni", "F", "#integer 4", "type"]),
        ("P6_3/mmc P-1 Pm", ["@194", "@2", "Pm"]),
        ("1.95-1.98", ["#decimal 1.95", "-", "#decimal 1.98"]),
    ],
)  # fmt: skip
def test_tokens(text, wanted):
    assert names(text) == wanted


def test_the_vocabulary_stays():
    """Models trained before read these ids: append to it, change nothing."""
    known = vocabulary()
    assert [known[name] for name in ("<pad>", "H", "Og", "@1", "@230", "#integer")] == [0, 1, 118, 119, 348, 349]
    assert module.vocabulary_hash() == VOCABULARY_HASH


def test_descriptions_need_no_bucket(demo):
    """Every word of every wording has a token of its own."""
    for _, _, crystal in demo[::9]:
        for sentence in describe(crystal).sentences:
            for wording in WORDINGS[sentence.kind]:
                found = names(wording.format_map(sentence.facts))
                assert not [name for name in found if name.startswith("~")], (wording, found)


def test_other_words_fall_into_buckets_the_same_each_time():
    (name,) = names("sesquioxide")
    assert name.startswith("~") and names("Sesquioxide") == [name] and names("~") == names("~")


@given(st.text(alphabet=string.printable + "ÅÄα°³−–漢", max_size=80))
def test_spans_lie_in_the_text_and_in_order(text):
    tokens = tokenize(text)
    assert all(0 <= start < end <= len(text) for start, end in zip(tokens.starts, tokens.ends, strict=True))
    assert all(end <= start for end, start in zip(tokens.ends[:-1], tokens.starts[1:], strict=True))
    assert tokens.sentences == sorted(tokens.sentences)


def test_sentences_of_tokens_are_those_of_the_description(demo, encoder):
    for _, _, crystal in demo[::60]:
        found = describe(crystal)
        tokens, text = encoder.spans(found), str(found)
        starts = np.cumsum([0] + [len(sentence.text) + 1 for sentence in found.sentences])
        wanted = np.searchsorted(starts, tokens.starts, side="right") - 1
        assert tokens.sentences == wanted.tolist(), text


@torch.no_grad()
def test_padding_and_company_change_nothing(encoder, demo):
    texts = [str(describe(crystal)) for _, _, crystal in demo[:300:75]] + ["Si"]
    together = encoder(encoder.collate(texts))
    assert together.tokens.shape[::2] == (len(texts), 32)
    for k, text in enumerate(texts):
        alone = encoder(encoder.collate([text]))
        assert together.mask[k].sum() == alone.mask.sum() == len(tokenize(text).ids)
        torch.testing.assert_close(together.tokens[k][together.mask[k]], alone.tokens[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_near_numbers_have_near_vectors(encoder):
    def vector(value: str) -> torch.Tensor:
        return encoder(encoder.collate([f"density {value} g/cm3"])).tokens[0, -1]

    base, near, far = (vector(value) for value in ("5.00", "5.001", "9.70"))
    assert (base - near).norm() < 0.3 * (base - far).norm()


def test_it_learns_to_read_a_number():
    """The density from texts in which it stands, on values never seen: the value is in the token."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = WordEncoder(width=32, n_layer=1, n_head=2)
    head = torch.nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)

    def batch(n: int) -> tuple[list[str], torch.Tensor]:
        values = rng.uniform(1, 10, n).round(2)
        return [f"The density is {v:.2f} g/cm3, of {rng.integers(2, 9)} atoms." for v in values], torch.tensor(values)

    for _ in range(150):
        texts, values = batch(64)
        loss = (head(encoder(encoder.collate(texts)).mean()).squeeze(1) - values.float()).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    texts, values = batch(200)
    with torch.no_grad():
        error = (head(encoder(encoder.collate(texts)).mean()).squeeze(1) - values.float()).abs().mean()
    assert error < 0.35  # guessing the middle: 2.2


def test_bad_texts_get_an_error(encoder):
    with pytest.raises(ValueError, match=r"text 1 is empty: ' \\n'; leave the text out"):
        encoder.collate(["Si", " \n"])
    with pytest.raises(ValueError, match=r"divisible by n_head \(=3\), got 128"):
        WordEncoder(n_head=3)


def test_of_a_long_text_the_beginning_is_read(encoder):
    """An alloy of eight elements in 64 sites takes 600 words."""
    long = "Si " * encoder.max_tokens + "C"
    part = encoder.collate([long, "Si"])
    assert part.ids.shape == (2, encoder.max_tokens) == (2, len(encoder.spans(long).ids))
    torch.testing.assert_close(
        encoder(part).tokens[0], encoder(encoder.collate(["Si " * encoder.max_tokens])).tokens[0]
    )
