"""The token that ends a turn, found in chat templates of the usual kinds."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from nld_train.data.chat.default import default_template
from nld_train.data.chat.prompt import ChatFormat, end_of_turn
from nld_train.data.tokenizer import bytes_tokenizer
from nld_train.errors import UserError

LOOP = "{% for message in messages %}"
CHATML = LOOP + "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
LLAMA = LOOP + "<|head|>{{ message.role }}\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
MISTRAL = (
    LOOP
    + "{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]{% else %}{{ ' ' + message.content + ' ' }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = LOOP + "{{ message.role }}: {{ message.content }}\n{% endfor %}"
STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
ADDED = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]", "<|im")


def tokenizer(template: str | None) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED])
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA, "<|eot_id|>"),
        (MISTRAL, "</s>"),
        (default_template(), "</s>"),
        (PLAIN, None),
        (STRICT, None),
        (None, None),
    ],
    ids=["chatml", "llama", "mistral", "default", "plain", "strict", "none"],
)
def test_the_end_of_a_turn(template: str | None, end: str | None) -> None:
    made = tokenizer(template)
    assert end_of_turn(made) == (() if end is None else (made.convert_tokens_to_ids(end),))


def test_one_of_several_templates_and_its_arguments() -> None:
    made = tokenizer(None)
    made.chat_template = {"default": CHATML, "loud": LOOP + "{{ message.content | upper }}{{ sign }}{% endfor %}"}
    messages = [{"role": "user", "content": "so"}]
    assert end_of_turn(made) == (made.convert_tokens_to_ids("<|im_end|>"),)
    assert ChatFormat(made).text(messages, "here") == "<|im_start|>user\nso<|im_end|>\n"
    assert ChatFormat(made, {"sign": "!"}, "loud").text(messages, "here") == "SO!"
    with pytest.raises(UserError, match="here: the chat template fails: no system prompt"):
        ChatFormat(tokenizer(STRICT)).ids(messages, "here")
