"""The ids of a text that a model reads: one rule for the special tokens around it (docs/data.md).

A document in preparing, a prompt and a context that is scored begin with the tokens that the tokenizer's own template
puts before a text: the BOS token, or none. Nothing of the template follows a text. Only preparing ends a document, with
the end token, and a text from a chat template is complete as it is.
"""

from __future__ import annotations

from typing import Any

# A letter that any vocabulary has, or encodes as its unknown token.
_PROBE = "a"


def beginning_of_text(tokenizer: Any) -> tuple[int, ...]:
    """The ids that a tokenizer of `transformers` puts before a text by its template; empty for most byte tokenizers."""
    alone, whole = plain_ids(tokenizer, _PROBE), list(tokenizer.encode(_PROBE, add_special_tokens=True))
    for start in range(len(whole) - len(alone) + 1):
        if alone and whole[start : start + len(alone)] == alone:
            return tuple(whole[:start])
    # A vocabulary without the probe: what is before the text is known from the name of the token only.
    return (tokenizer.bos_token_id,) if whole[:1] == [tokenizer.bos_token_id] else ()


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text without any tokens around it; special tokens that the text spells are special tokens."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text at the beginning of a sequence; a text that spells the BOS token gets no second one."""
    ids, beginning = plain_ids(tokenizer, text), beginning_of_text(tokenizer)
    return ids if beginning and ids[:1] == [beginning[0]] else [*beginning, *ids]
