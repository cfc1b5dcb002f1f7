"""The chat template of the tokenizers that are made here."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nld_train.data.chat.default import default_template
from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer, train_bpe

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "yé", "reasoning_content": "hm"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
    {"role": "tool", "content": "1"},
    {"role": "assistant", "content": ""},
]


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer(), train_bpe(["again again hi U A be"], 264)])
def test_a_saved_tokenizer_has_the_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    directory = str(tmp_path / "tokenizer")
    save_tokenizer(tokenizer, directory)
    assert load_tokenizer(directory).chat_template is None
    save_tokenizer(tokenizer, directory, chat_template=default_template())
    loaded = load_tokenizer(directory)
    text = loaded.apply_chat_template(CONVERSATION, tokenize=False)
    assert text == (
        "S<s>be</s>U<s> hi </s>A<s><think>hm</think>yé</s>U<s>again</s>"
        'A<s><call>{"name": "f", "arguments": {"x": 1}}</call></s>T<s>1</s>A<s></s>'
    )
    prompt = loaded.apply_chat_template(CONVERSATION[:2], add_generation_prompt=True, return_dict=False)
    whole = loaded.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True)
    assert whole["input_ids"][: len(prompt)] == prompt
    runs = groupby(zip(whole["input_ids"], whole["assistant_masks"], strict=True), key=lambda pair: pair[1])
    answers = [loaded.decode([token for token, _ in run]) for is_answer, run in runs if is_answer]
    assert answers == ["<think>hm</think>yé</s>", '<call>{"name": "f", "arguments": {"x": 1}}</call></s>', "</s>"]


def test_tools_are_a_turn_of_their_own(tmp_path: Path) -> None:
    save_tokenizer(bytes_tokenizer(), str(tmp_path / "tokenizer"), chat_template=default_template())
    loaded = load_tokenizer(str(tmp_path / "tokenizer"))
    text = loaded.apply_chat_template(CONVERSATION[1:2], tools=[{"type": "function"}], tokenize=False)
    assert text == 'F<s>[{"type": "function"}]</s>U<s> hi </s>'
