"""The tokens that end an assistant's turn, by the chat template alone."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from nld_train.data.chat.default import default_template
from nld_train.data.chat.end_of_turn import end_of_turn_tokens
from nld_train.data.tokenizer import bytes_tokenizer

BORDERS = (
    *("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}<|eom_id|>{% else %}{{ m.content | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('no tools') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", ["<|im_end|>"]),
        (LLAMA_3, ["<|eot_id|>", "<|eom_id|>"]),
        (MISTRAL, ["</s>"]),
        (default_template(), ["</s>"]),
        ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}", []),
        ("{{ raise_exception('never') }}", []),
        (None, []),
    ],
    ids=["chatml", "two", "mistral", "own", "plain text", "refuses", "no template"],
)
def test_they_are_those_after_its_text(template: str | None, expected: list[str]) -> None:
    definition = bytes_tokenizer()
    definition.add_special_tokens([AddedToken(token, special=True) for token in BORDERS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=definition, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    assert tokenizer.convert_ids_to_tokens(end_of_turn_tokens(tokenizer)) == expected
