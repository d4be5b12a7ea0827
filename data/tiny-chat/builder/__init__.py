"""Builds the embedded model: its text, its tokenizer, its weights and its figures."""
