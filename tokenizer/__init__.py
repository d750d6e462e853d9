"""A CIF-aware tokenizer: every keyword, number, element, space group and Wyckoff letter is one token."""

from tokenizer.cif_tokenizer import CIFTokenizer
from tokenizer.grammar import Grammar, GrammarError
from tokenizer.vocabulary import Vocabulary, VocabularyError, load_vocabulary

__all__ = ["CIFTokenizer", "Grammar", "GrammarError", "Vocabulary", "VocabularyError", "load_vocabulary"]
