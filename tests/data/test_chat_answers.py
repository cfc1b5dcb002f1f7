"""Ids and answers of conversations against transformers' own rendering of whole conversations and of their prefixes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_templates as templates
import numpy as np
import pytest

from nld_train.data.chat.chosen_template import chosen_template
from nld_train.data.chat.default import default_template
from nld_train.data.chat.encoder import ChatEncoder, ChatSpec, EncodedConversation
from nld_train.data.chat.rows import conversation_of
from nld_train.data.chat.turns import Answers
from nld_train.data.tokenizer import directory_spec
from nld_train.errors import UserError

Row = dict[str, Any]
Encode = Callable[..., list[EncodedConversation]]


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A saved tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in templates.TOKENIZERS:
        templates.hugging_face(templates.made(name)).save_pretrained(folder / name)
    return {name: str(folder / name) for name in templates.TOKENIZERS}


@pytest.fixture
def encode(directories: dict[str, str], tmp_path: Path) -> Encode:
    """Encodes rows as `nld-data prepare --chat` does; the documents of all rows."""

    def encoded(
        rows: list[Row], template: str, name: str = "bytes", answers: Answers = "all", arguments: Row | None = None
    ) -> list[EncodedConversation]:
        (tmp_path / "template").write_text(template)
        chosen = chosen_template(str(tmp_path / "template"), arguments or {}, directories[name])
        encoder = ChatEncoder(ChatSpec(directory_spec(directories[name], False, False), chosen, answers))
        conversations = [conversation_of(row, "auto", f"row {number}") for number, row in enumerate(rows, 1)]
        return [document for row in encoder.encode(conversations) for document in row]

    return encoded


def chat(*texts: str, system: str | None = None) -> Row:
    """Turns of user and assistant in turn."""
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system is not None else []), *messages]}


def shown(document: EncodedConversation, name: str = "bytes") -> list[str]:
    """The text of each answer."""
    tokenizer, found = templates.hugging_face(templates.made(name)), []
    borders = np.flatnonzero(np.diff(document.answers.astype(int), prepend=0, append=0))
    for begin, end in borders.reshape(-1, 2):
        found.append(tokenizer.decode(document.tokens[begin:end].tolist()))
    return found


def naive(row: Row, template: str, name: str) -> tuple[list[int], list[bool]]:
    """Ids, and the answers as the difference of two renderings each, up to the last special token."""
    tokenizer = templates.hugging_face(templates.made(name), template)

    def render(count: int, prompt: bool) -> list[int]:
        found = tokenizer.apply_chat_template(row["messages"][:count], add_generation_prompt=prompt, return_dict=False)
        return list(found)

    ids = render(len(row["messages"]), False)
    answers = [False] * len(ids)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for number, message in enumerate(row["messages"]):
        if message["role"] == "assistant":
            prompt, upto = render(number, True), render(number + 1, False)
            assert ids[: len(prompt)] == prompt
            assert ids[: len(upto)] == upto
            end = max([len(prompt), *(index + 1 for index, token in enumerate(upto) if token in special)])
            answers[len(prompt) : end] = [True] * (end - len(prompt))
    return ids, answers


def random_rows(seed: int, count: int) -> list[Row]:
    draw = random.Random(seed)
    alphabet = "ab the é漢\U0001f600 \n\t  answer▁"

    def text() -> str:
        return "".join(draw.choice(alphabet) for _ in range(draw.choice([0, 1, 5, 30])))

    return [
        chat(*(text() for _ in range(2 * draw.randint(1, 4))), system=draw.choice([None, "be brief", " "]))
        for _ in range(count)
    ]


TEMPLATES = {
    "chatml": templates.CHATML,
    "tagged": templates.CHATML_TAGGED,
    "wide": templates.CHATML_WIDE,
    "mistral": templates.MISTRAL,
    "llama": templates.LLAMA_3,
    "default": default_template(),
}


@pytest.mark.parametrize("name", templates.TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_and_answers_are_those_of_separate_renderings(encode: Encode, template: str, name: str) -> None:
    rows = random_rows(3, 12)
    found = encode(rows, TEMPLATES[template], name)
    assert len(found) == len(rows)
    for row, document in zip(rows, found, strict=True):
        ids, answers = naive(row, TEMPLATES[template], name)
        assert document.tokens.tolist() == ids
        assert document.answers.tolist() == answers


def test_answers_end_with_the_end_of_the_turn(encode: Encode) -> None:
    rows = [chat("a", " b ", "c", ""), {"messages": [{"role": "assistant", "content": "alone"}]}]
    first, second = encode(rows, templates.CHATML)
    assert shown(first) == [" b <|im_end|>", "<|im_end|>"]
    assert shown(second) == ["alone<|im_end|>"]
    assert shown(encode(rows, templates.LLAMA_3)[0]) == ["b<|eot_id|>", "<|eot_id|>"]
    (plain,) = encode([chat("a", "b", "c", "")], templates.PLAIN)
    assert shown(plain) == ["b\n", "\n"]


def test_an_end_of_turn_that_is_the_padding_token_is_learned(encode: Encode, tmp_path: Path) -> None:
    tokenizer = templates.hugging_face(templates.made("bytes"), templates.CHATML, pad_token="<|im_end|>")
    tokenizer.save_pretrained(tmp_path / "own")
    spec = directory_spec(str(tmp_path / "own"), False, False)
    encoder = ChatEncoder(ChatSpec(spec, chosen_template(None, {}, str(tmp_path / "own")), "all"))
    [[document]] = encoder.encode([conversation_of(chat("a", "b"), "auto", "row 1")])
    assert document.tokens[document.answers].tolist()[-1] == tokenizer.pad_token_id


def test_tool_calls_are_answers_and_their_results_are_not(encode: Encode) -> None:
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "two"},
    ]
    row = {"messages": messages, "tools": '[{"type": "function", "function": {"name": "add"}}]'}
    (mistral,) = encode([row], templates.MISTRAL)
    assert shown(mistral) == ['[TOOL_CALLS]add{{"x": 1}}</s>', "two</s>"]
    text = templates.hugging_face(templates.made("bytes")).decode(mistral.tokens.tolist())
    assert '[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "add"}}][/AVAILABLE_TOOLS]' in text
    (default,) = encode([row], default_template())
    assert shown(default) == ['<call>{"name": "add", "arguments": {"x": 1}}</call></s>', "two</s>"]


@pytest.mark.parametrize("template", ["chatml", "tagged", "wide", "mistral", "llama", "default"])
def test_turns_that_are_not_learned_are_prompts(encode: Encode, template: str) -> None:
    row = chat("a", "b", "c", "d", "e", "f", "g")
    row["messages"][3]["loss"] = 0
    (document,) = encode([row], TEMPLATES[template])
    assert [text[0] for text in shown(document)] == ["b", "f"]
    text = templates.hugging_face(templates.made("bytes")).decode(document.tokens.tolist())
    assert "d" in text.replace("_id", "").replace("_header", "")
    assert "g" not in text.replace("_", "")  # nothing is learned from what follows the last answer
    (last,) = encode([row], TEMPLATES[template], answers="last")
    assert last.tokens.tolist() == document.tokens.tolist()
    assert [text[0] for text in shown(last)] == ["f"]
    row["messages"][1]["weight"] = row["messages"][5]["weight"] = 0
    assert encode([row], TEMPLATES[template]) == []


def test_reasoning_of_earlier_turns_is_as_the_template_has_it(encode: Encode) -> None:
    row = chat("a", "b", "c", "d")
    row["messages"][1]["reasoning_content"] = "why b"
    row["messages"][3]["reasoning"] = "why d"
    with pytest.raises(
        UserError, match=r"^row 1: message 2: the rendering .* up to this answer.* --answers each or last"
    ):
        encode([row], templates.QWEN_3)
    first, second = encode([row], templates.QWEN_3, answers="each")
    assert shown(first) == ["<think>\nwhy b\n</think>\n\nb<|im_end|>"]
    assert shown(second) == ["<think>\nwhy d\n</think>\n\nd<|im_end|>"]
    assert "why b" not in templates.hugging_face(templates.made("bytes")).decode(second.tokens.tolist())
    (last,) = encode([row], templates.QWEN_3, answers="last")
    assert last.tokens.tolist() == second.tokens.tolist()
    (kept,) = encode([row], default_template())
    assert shown(kept) == ["<think>why b</think>b</s>", "<think>why d</think>d</s>"]


def test_an_empty_thinking_span_of_the_prompt_is_no_answer(encode: Encode) -> None:
    rows = [chat("a", "b"), chat("a", "b") | {"chat_template_kwargs": {"enable_thinking": True}}]
    off, on = encode(rows, templates.QWEN_3, arguments={"enable_thinking": False})
    assert shown(off) == ["b<|im_end|>"]
    assert shown(on) == ["<think>\n\n</think>\n\nb<|im_end|>"]
    assert off.tokens.tolist() == on.tokens.tolist()


@pytest.mark.parametrize("name", templates.TOKENIZERS)
def test_text_never_becomes_a_special_token(encode: Encode, name: str) -> None:
    spelled = "say <|im_end|> and <mask></s>\n<|im_start|>system"
    tokenizer = templates.hugging_face(templates.made(name))
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    counted = [
        sum(token in special for token in encode([chat(text, text)], template, name)[0].tokens.tolist())
        for template in (templates.CHATML, templates.CHATML_TAGGED)
        for text in (spelled, "plain")
    ]
    assert len(set(counted)) == 1
    for template in (templates.CHATML, templates.CHATML_TAGGED):
        (document,) = encode([chat(spelled, spelled)], template, name)
        assert shown(document, name) == [f"{spelled}<|im_end|>"]
        assert document.answers.sum() < len(document.tokens) / 2


def test_a_border_within_a_token_is_refused(encode: Encode) -> None:
    with pytest.raises(
        UserError, match=r"^row 1: message 2: the tokens of '.*assistant: ' are no prefix of those with 'a"
    ):
        encode([chat("what", "answer there")], templates.PLAIN, "merging")
    tagged = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
    with pytest.raises(UserError, match=r"no prefix of those with 'answer there"):
        encode([{"messages": [{"role": "assistant", "content": "answer there"}]}], tagged, "merging")


def test_blocks_at_unknown_positions_are_refused(encode: Encode) -> None:
    with pytest.raises(UserError, match=r"^row 1: message 2: the template's \{% generation %\} block does not reach"):
        encode([chat("a", "b")], templates.IN_MACRO)
    signed = templates.CHATML_TAGGED.replace("'<|im_end|>\\n'", "' (end)<|im_end|>\\n'")
    with pytest.raises(UserError, match=r"block does not reach to the end of the turn"):
        encode([chat("a", "b")], signed)


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        (chat("a", "b", "c", "d", system="s") | {"system": "t"}, "mistral", ""),
        (
            {"messages": [*chat("a")["messages"], *chat("a", "b")["messages"]]},
            "mistral",
            "row 1: the chat template refus",
        ),
        (
            {
                "messages": [
                    *chat("a", "b")["messages"],
                    {"role": "system", "content": "s"},
                    *chat("a", "b")["messages"],
                ]
            },
            "mistral",
            "row 1: the chat template refuses the conversation: a system message must be the first one",
        ),
        (
            {"messages": [{"role": "assistant", "content": "b"}]},
            "mistral",
            "row 1: the chat template refuses the convers",
        ),
        (
            {"messages": chat("a", "b")["messages"] * 2},
            "{{ messages[9].content }}{{ 1 + 'a' }}",
            "row 1: the chat template",
        ),
    ],
)
def test_a_template_that_fails_is_named_with_the_row(encode: Encode, row: Row, template: str, message: str) -> None:
    if not message:
        assert encode([row], TEMPLATES[template])
        return
    with pytest.raises(UserError, match=f"^{message}.*"):
        encode([row], TEMPLATES.get(template, template))


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "plain"])
def test_turns_of_the_user_begin_where_a_conversation_can_be_cut(encode: Encode, template: str) -> None:
    row = chat("a ", "b", " c", "d", "e", "f", system="s")
    whole, single = encode([row, chat("a", "b", system="s")], TEMPLATES[template])
    assert not single.turns.any()
    first, *later = np.flatnonzero(whole.turns).tolist()
    assert len(later) == 2
    for begin, left in zip(later, ([" c", "d", "e", "f"], ["e", "f"]), strict=True):
        (cut,) = encode([chat(*left, system="s")], TEMPLATES[template])
        assert cut.tokens.tolist() == [*whole.tokens[:first].tolist(), *whole.tokens[begin:].tolist()]


def test_a_system_prompt_of_the_template_stays_in_a_cut_conversation(encode: Encode) -> None:
    """As in templates that write one where there is none, and that cannot render a conversation without messages."""
    own = "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{%- endif %}"
    whole, cut = encode([chat("u", "user", "a", "b"), chat("a", "b")], own + templates.CHATML)
    first, second = np.flatnonzero(whole.turns).tolist()
    assert cut.tokens.tolist() == [*whole.tokens[:first].tolist(), *whole.tokens[second:].tolist()]
    assert first > len("Be kind.")
