"""The language model: token ids to logits. Knows no crystals and no files of crystals."""
