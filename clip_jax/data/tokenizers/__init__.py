"""Captions to token ids, one file a kind of tokenizer."""
