"""Tokenizer_Lab: a notebook that takes a student ID apart with real tokenizers, and says why it falls apart so.

`analysis` computes, `figures` draws, Tokenizer_Lab.md is the notebook's source, `notebook` builds and executes it."""
