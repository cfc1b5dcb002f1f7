"""Conversion between Hugging Face directories and Megatron checkpoints: `nld-convert import`, `export`, `verify`."""
