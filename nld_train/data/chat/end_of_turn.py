"""The special tokens with which a chat template ends an assistant's turn: an instruct model has to stop at them.

Many templates end a turn with another token than the end-of-sequence token (`<|im_end|>`, `<|eot_id|>`), and decoding
that only knows the latter goes on with a turn of the user.
"""

from __future__ import annotations

from typing import Any

# Nothing a template writes by itself. Letters alone, so that no template or tokenizer takes it apart in a special way.
_FIRST, _LAST = "Zqxfirst", "Zqxlast"
_CALL = {"type": "function", "id": "zqxcall01", "function": {"name": "zqx", "arguments": {"zqx": _LAST}}}
_USER = {"role": "user", "content": "Zqxuser"}
_CONVERSATIONS: tuple[tuple[tuple[str, ...], list[dict[str, Any]]], ...] = (
    (
        (_FIRST, _LAST),
        [_USER, {"role": "assistant", "content": _FIRST}, _USER, {"role": "assistant", "content": _LAST}],
    ),
    ((_LAST,), [_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]),
)


def end_of_turn_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that end a turn of the assistant, an answer or a tool call, in the order in which they occur.

    Found by rendering conversations: the first special token after the text of a turn. What depends on the template
    alone does not change with the data, and is known for a model whose training data are not there any more.

    Args:
        tokenizer: of `transformers`.

    Returns:
        Ids; empty without a chat template, or where turns end with ordinary text.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ()
    found: list[int] = []
    for texts, messages in _CONVERSATIONS:
        try:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template may refuse a conversation, such as tool calls, with any kind of exception
            continue
        for text in texts:
            before, _, after = rendered.rpartition(text)
            found += _first_special(tokenizer, after) if before else ()
    return tuple(dict.fromkeys(found))


def _first_special(tokenizer: Any, rest: str) -> tuple[int, ...]:
    """The first special token of the text after a turn; none where the next turn begins before one."""
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(rest.partition(_USER["content"])[0], add_special_tokens=False)["input_ids"]
    return next(((token,) for token in ids if token in special), ())
