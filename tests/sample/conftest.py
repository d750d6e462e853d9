from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from crystallm.model.checkpoint import model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.sample.rules import Rules, rules_of
from tokenizer import CIFTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> CIFTokenizer:
    return CIFTokenizer()


@pytest.fixture(scope="session")
def rules(tokenizer: CIFTokenizer) -> Rules:
    return rules_of(tokenizer.vocabulary)


@pytest.fixture(scope="session")
def random_gpt(tokenizer: CIFTokenizer) -> GPT:
    """Untrained: draws anything that the constraints let it."""
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=400, number_hidden=16)
    return GPT(config, token_spec(tokenizer)).eval()


@pytest.fixture(scope="session")
def checkpoint(random_gpt: GPT, tokenizer: CIFTokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of `random_gpt`."""
    folder = tmp_path_factory.mktemp("model")
    save_file(dict(random_gpt.named_parameters()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model_info(random_gpt.config, tokenizer)))
    return str(folder)
