"""The chat template of the tokenizers that are made here: `bytes` and `train-bpe`."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def default_template() -> str:
    """Its text. A turn costs three tokens beside its content; a template of any tokenizer with a BOS and an EOS token.

    A user's question and its answer are `U<s>question</s>A<s>answer</s>`, and `A<s>` is the generation prompt.
    """
    return Path(__file__).with_name("default.jinja").read_text(encoding="utf-8").rstrip("\n")


@cache
def picture_template() -> str:
    """The same with `[IMG]` wherever a message has a picture; of conversations without pictures the same text."""
    return Path(__file__).with_name("pictures.jinja").read_text(encoding="utf-8").rstrip("\n")
