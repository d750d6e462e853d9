from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.train.synthetic import random_text
from tokenizer import CIFTokenizer

LLAMA = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=96, number_hidden=16)
GPT2 = GPTConfig(
    n_layer=2,
    n_head=2,
    n_embd=32,
    block_size=96,
    norm="layernorm",
    position="learned",
    mlp="gelu",
    bias=True,
    number_embedding=False,
)
CONFIGS = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "qk_norm": GPTConfig(n_layer=1, n_head=4, n_embd=32, block_size=96, qk_norm=True, number_hidden=16),
}


@pytest.fixture(scope="session")
def tokenizer() -> CIFTokenizer:
    return CIFTokenizer()


@pytest.fixture(scope="session")
def sequences(tokenizer: CIFTokenizer) -> list[np.ndarray]:
    """Six structures of different lengths."""
    rng = np.random.default_rng(1)
    return [np.array(tokenizer.encode(random_text(rng))) for _ in range(6)]


@pytest.fixture(params=list(CONFIGS))
def any_gpt(request: pytest.FixtureRequest, tokenizer: CIFTokenizer) -> GPT:
    """A small model of each shape, with weights large enough for differences to show."""
    return make_gpt(CONFIGS[request.param], tokenizer)


@pytest.fixture
def tiny_gpt(tokenizer: CIFTokenizer) -> GPT:
    return make_gpt(LLAMA, tokenizer)


@pytest.fixture
def gpt_of(tokenizer: CIFTokenizer) -> Callable[[GPTConfig], GPT]:
    return lambda config: make_gpt(config, tokenizer)


def make_gpt(config: GPTConfig, tokenizer: CIFTokenizer) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, token_spec(tokenizer, config.loss)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
