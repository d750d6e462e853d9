"""The README.md of an exported model: what it is and how it is used, in the form that a model hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crystallm.model.gpt import GPT
from tokenizer import CIFTokenizer

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- chemistry
- materials-science
- crystal-structure
- cif
---
# A crystal structure generator
Writes crystal structures as canonical CIF text, one token a number. {blocks:,} parameters in {n_layer} blocks, and a
table of {vocab_size:,} token vectors; up to {block_size} tokens a structure; vocabulary `{vocabulary}`, {hash:.12}.
The class is `{architecture}`: no code of its own is needed to load it.

{grammar}

## With crystallm
Installed with its extra `hf`:
```bash
crystallm-sample --model hf:ORG/NAME --prompt "Na Cl" --out nacl/
```
`--model` takes this folder, too: `crystallm/` in it is the checkpoint. This is the quickest way, draws dead ends again,
and checks what it drew.

## With transformers
```python
from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.cif import write_cif
from crystallm.sample.hf import GrammarLogitsProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("ORG/NAME")
tokenizer = AutoTokenizer.from_pretrained("ORG/NAME")
processor = GrammarLogitsProcessor(["Na Cl", "Sr Ti O3"], mode="full")
inputs = tokenizer(processor.texts, return_tensors="pt", padding=True)
ids = model.generate(**inputs, logits_processor=[processor], num_return_sequences=4)
for row, text in enumerate(tokenizer.batch_decode(ids, skip_special_tokens=True)):
    if row in processor.dead_ends:
        print(processor.dead_ends[row])  # nothing could follow: draw another
    else:
        print(write_cif(AsymmetricUnit.from_text(text)))  # a full CIF
```
`mode="syntax"` lets through what parses; `mode="full"` adds crystallography: formula, multiplicities, Wyckoff
positions, the cell's ties and distances hold.

## With a server
`grammar.lark` is the syntax over token ids for llguidance, which vLLM and SGLang use. Its `start` is the place where a
formula prompt ends. crystallm's guide says how to serve the model with it.
"""
GRAMMAR = {
    "grammar": """**The grammar belongs to the model.** Only the choices that the syntax leaves open were trained: at a
coordinate the softmax ran over coordinates, and the logits of all other tokens mean nothing there. Draw through the
grammar, or what comes out does not parse.""",
    "full": """Trained with a softmax over the whole vocabulary, so it may be drawn from without the grammar; with it,
every structure parses.""",
    "constrained": """**Drawing belongs to the sampler's constraints.** The softmax ran over what grammar, symmetry and
distances allow at each place; the logits of all other tokens mean nothing there. Draw with
`bin/sample.py --constraints full`: the syntax alone, as the logits processor here has it, lets through tokens that were
never trained against.""",
}


def model_card(model: GPT, tokenizer: CIFTokenizer, config: Mapping[str, Any]) -> str:
    """`config` is the exported config.json."""
    return CARD.format(
        blocks=model.n_block_parameters,
        n_layer=model.config.n_layer,
        block_size=model.config.block_size,
        vocabulary=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        hash=tokenizer.hash,
        architecture=config["architectures"][0],
        grammar=GRAMMAR[model.config.loss],
    )
