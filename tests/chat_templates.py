"""Chat templates in the styles of well-known ones, and tokenizers with the special tokens that they write."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nld_train.data.tokenizer import bytes_tokenizer, train_bpe

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# The end of the turn is not in the block, as in many templates.
CHATML_TAGGED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content }}{%- endgeneration %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# The header is in the block, which the generation prompt supplies.
CHATML_WIDE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

IN_MACRO = """\
{%- macro turn(message) %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- turn(message) }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# Roles alternate, the system prompt comes first, tools before the last question.
MISTRAL = """\
{{- bos_token }}
{%- set rest = messages %}
{%- if messages and messages[0].role == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}
    {%- set rest = messages[1:] %}
{%- endif %}
{%- if tools %}
    {{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- set turn = namespace(index=0) %}
{%- for message in rest %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {%- if (message.role == 'user') != (turn.index % 2 == 0) %}
            {{- raise_exception('roles must alternate: user, assistant, user, ..') }}
        {%- endif %}
        {%- set turn.index = turn.index + 1 %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- elif message.role == 'assistant' %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + '{' + call.function.arguments | tojson + '}' }}
        {%- endfor %}
        {{- eos_token }}
    {%- else %}
        {{- raise_exception('a system message must be the first one') }}
    {%- endif %}
{%- endfor %}"""

# Strips white space around every content.
LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Reasoning of the turns before the last question is left out; without thinking the prompt ends with an empty span.
QWEN_3 = """\
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set last.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > last.question %}
        {{- '<think>\\n' + (message.reasoning_content or '') | trim + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' + call.function | tojson + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# No special token at a border, and a space at the end of the generation prompt.
PLAIN = """\
{%- for message in messages %}
    {{- message.role + ': ' + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant: ' }}
{%- endif %}"""

_WORDS = ["what is the user assistant system question answer there sorted capital again hello : \n"] * 4


def hugging_face(tokenizer: Tokenizer, template: str | None = None, **named: str) -> Any:
    """A tokenizer of transformers."""
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | named
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    wrapped.chat_template = template
    return wrapped


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Bytes."""
    return _with_special(bytes_tokenizer())


def merging_tokenizer() -> Tokenizer:
    """A byte-level BPE, whose words begin with the space before them."""
    return _with_special(train_bpe(_WORDS, 320))


def sentence_tokenizer() -> Tokenizer:
    """In the manner of SentencePiece: a word begins with the space before it, unknown characters are their bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(_WORDS, trainer)
    vocabulary = trained.get_vocab()
    merges = [tuple(merge) for merge in _merges(trained)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("▁"), " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", "<pad>")]
    )
    return _with_special(tokenizer)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    found: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return found


TOKENIZERS = {"bytes": byte_tokenizer, "merging": merging_tokenizer, "sentence": sentence_tokenizer}
made = cache(lambda name: TOKENIZERS[name]())
