"""Conversations rendered by one of several templates, with arguments, and templates that fail."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from nld_train.data.chat.prompt import ChatFormat
from nld_train.data.tokenizer import bytes_tokenizer
from nld_train.decoding.command_line.prompts import Prompt
from nld_train.decoding.command_line.request import PromptEncoder
from nld_train.errors import UserError

LOOP = "{% for message in messages %}"
CHATML = LOOP + "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
ADDED = ("<|im_start|>", "<|im_end|>")


def tokenizer(template: str | None, before: bool = False) -> Any:
    """Bytes, and borders of turns; `before`: with BOS before any text."""
    definition = bytes_tokenizer()
    if before:
        definition.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=definition, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
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
        ChatFormat(tokenizer(STRICT)).prompt(messages, "here")


@pytest.mark.parametrize("template", ["{{ bos_token }}" + CHATML, CHATML], ids=["with BOS", "without"])
def test_a_rendered_conversation_gets_no_token_before_it(template: str) -> None:
    """As with `apply_chat_template(tokenize=True)` of transformers; a text that is continued gets one."""
    made = tokenizer(template, before=True)
    messages = [{"role": "user", "content": "so"}]
    text, ids = PromptEncoder(ChatFormat(made)).encode(Prompt("here", messages=messages))
    expected = made.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert (text, ids) == ChatFormat(made).prompt(messages, "here")
    assert ids == expected
    assert ids.count(1) == text.count("<s>")
    plain, chat = (PromptEncoder(ChatFormat(made), chat).encode(Prompt("here", "so"))[1] for chat in (False, True))
    assert plain == [1, ord("s") + 4, ord("o") + 4]
    assert chat == ids
