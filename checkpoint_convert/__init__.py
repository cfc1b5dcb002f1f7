"""Ministral3 checkpoints in, Hugging Face checkpoints out: `nld-convert import`, `export` and `verify`."""
