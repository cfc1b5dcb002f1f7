"""Conversations rendered by one of several templates, with arguments, and templates that fail."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from nld_train.data.chat.prompt import ChatFormat
from nld_train.data.tokenizer import bytes_tokenizer
from nld_train.errors import UserError

LOOP = "{% for message in messages %}"
CHATML = LOOP + "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
ADDED = ("<|im_start|>", "<|im_end|>")


def tokenizer(template: str | None) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED])
    made.chat_template = template
    return made


def test_one_of_several_templates_and_its_arguments() -> None:
    made = tokenizer(None)
    made.chat_template = {"default": CHATML, "loud": LOOP + "{{ message.content | upper }}{{ sign }}{% endfor %}"}
    messages = [{"role": "user", "content": "so"}]
    assert ChatFormat(made).text(messages, "here") == "<|im_start|>user\nso<|im_end|>\n"
    assert ChatFormat(made, {"sign": "!"}, "loud").text(messages, "here") == "SO!"
    with pytest.raises(UserError, match="here: the chat template fails: no system prompt"):
        ChatFormat(tokenizer(STRICT)).ids(messages, "here")
