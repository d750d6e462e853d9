"""Our tokenizer in the words of Hugging Face's `tokenizers`, the grammar in llguidance's. Needs neither."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenizer import CIFTokenizer, Grammar

ANY_CHARACTER = {"(?s:.)": r"[\s\S]"}  # Oniguruma, which `tokenizers` matches with, has no (?s:)


def tokenizer_json(tokenizer: CIFTokenizer) -> dict[str, Any]:
    """The content of tokenizer.json, which encodes any text to the same ids.

    The vocabulary's pattern cuts the text; a piece that is a lexeme is one token, any other is merged from its bytes,
    the lowest id first, as tiktoken does. Raises ValueError for a vocabulary that is not of lexemes.
    """
    vocabulary = tokenizer.vocabulary
    if vocabulary.kind != "lexemes":
        raise ValueError(
            f"the vocabulary {vocabulary.name!r} has no stock tokenizer: of kind {vocabulary.kind!r}, wanted lexemes"
        )
    *lexemes, pad = vocabulary.tokens
    pattern = vocabulary.pattern
    for ours, theirs in ANY_CHARACTER.items():
        pattern = pattern.replace(ours, theirs)
    shown = [_as_characters(lexeme) for lexeme in lexemes]
    pairs = ((lexeme[:cut], lexeme[cut:]) for lexeme in lexemes for cut in range(1, len(lexeme)))
    merges = [[_as_characters(a), _as_characters(b)] for a, b in pairs if a in vocabulary.ids and b in vocabulary.ids]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pad_token = {"id": len(lexemes), "content": pad.decode(), "special": True, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**pad_token, "single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a lexeme is one token, whether or not its bytes merge to it
            "vocab": {text: id_ for id_, text in enumerate(shown)},
            "merges": merges,
        },
    }


def tokenizer_config(tokenizer: CIFTokenizer, block_size: int) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    The end of a structure is an ordinary newline. As a special token it would be cut out of every text before the
    pattern sees it, so it is named in the model's config only, and the tokenizer's end is padding.
    """
    pad = tokenizer.token(tokenizer.pad_id)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": pad,
        "padding_side": "left",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def grammar_lark(tokenizer: CIFTokenizer, prompt: str = "data_H\n_crystallm_primitive_formula_units ") -> str:
    """The syntax of what may follow `prompt`, for llguidance and the servers that use it (vLLM, SGLang, …).

    One rule for each state of the grammar, over token ids: a grammar over characters would allow a lexeme to be
    spelled in tokens that no training ever produced. Only the place where the prompt ends matters, so this one serves
    every formula. Raises GrammarError for a prompt that is not the beginning of a canonical CIF.
    """
    grammar = Grammar(tokenizer)
    names = ["text" if name == "start" else name for name in grammar.state_names]  # `start` is where llguidance starts
    lines = [
        "%llguidance {}",
        f"// Token ids of the vocabulary {tokenizer.name!r}, hash {tokenizer.hash[:12]}.",
        "// `start` is where the prompt ends: after the formula, as it stands here.",
        f"start: {names[grammar.state_after(tokenizer.encode(prompt))]}",
    ]
    for state, name in enumerate(names):
        if grammar.is_final(state):
            continue
        following: dict[int, list[int]] = {}
        for token in grammar.allowed(state).tolist():
            following.setdefault(grammar.step(state, token), []).append(token)
        choices = [
            f"<[{_ranges(tokens)}]>" + ("" if grammar.is_final(after) else f" {names[after]}")
            for after, tokens in following.items()
        ]
        lines.append(f"{name}: {' | '.join(choices)}")
    return "\n".join(lines) + "\n"


def _ranges(ids: list[int]) -> str:
    """[3, 4, 5, 9] -> "3-5,9" """
    ordered = np.unique(ids)
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _as_characters(token: bytes) -> str:
    """Bytes as the characters that GPT-2's tokenizer writes them in: printable ones as themselves, others from U+0100.

    Radford et al. 2019, `bytes_to_unicode` of their encoder.
    """
    return token.decode("latin-1").translate(_CHARACTERS)


_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_CHARACTERS = {byte: 0x100 + k for k, byte in enumerate(b for b in range(256) if b not in _PRINTABLE)}
