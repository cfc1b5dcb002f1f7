"""`nld-decode --chat`: turn after turn on standard input, in every mode, and conversations from a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_helpers import refusal
from rich.console import Console

from nld_train.commands.decode import main
from nld_train.data.chat import default

MODES = ("ar", "diffusion", "linear", "quadratic")
TEMPLATE = Path(default.__file__).with_name("default.jinja")
SETTINGS = ("--chat-template", TEMPLATE, "--max-new-tokens", 12, "--block-length", 4, "--threshold", 0.3)
Record = dict[str, Any]
Chat = Callable[..., list[Record]]


def words(*given: object) -> list[str]:
    return list(map(str, given))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Bytes on standard input."""

    def type_in(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return type_in


@pytest.fixture
def chat(trained_export: Path, typed: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]) -> Chat:
    """Lines from a pipe; the records of the answers, without the time."""

    def talk(lines: list[str], *more: object) -> list[Record]:
        typed("\n".join(lines).encode())
        capsys.readouterr()
        assert main(words(trained_export, "--chat", "--json", *SETTINGS, *more)) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(record.pop("seconds") > 0 for record in found)
        return found

    return talk


def answered(
    conversation: list[tuple[str, str]], export: Path, folder: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> Record:
    """One decode of a whole conversation, from a file."""
    row = {"messages": [{"role": role, "content": content} for role, content in conversation]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = [option for option in SETTINGS if mode == "diffusion" or option not in ("--threshold", 0.3)]
    options = [option for option in options if mode != "ar" or option not in ("--block-length", 4)]
    capsys.readouterr()
    given = words(export, "--mode", mode, "--json", "--prompts", folder / "rows.jsonl", *options)
    assert main(given) == 0
    found: Record = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_chat_is_one_decode_of_the_rendered_conversation(
    chat: Chat, trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    questions = ["seven times", "", "r\u00e9sum\u00e9", "is"]
    records = chat(questions, "--mode", mode, "--system", "ends")
    assert [record["prompt"] for record in records] == ["seven times", "r\u00e9sum\u00e9", "is"]
    first, second, _ = records
    assert first["prefill_tokens"] == first["prompt_tokens"]
    # The turn before is in the cache.
    assert 0 < second["prefill_tokens"] <= second["prompt_tokens"] - first["prompt_tokens"]
    conversation = [("system", "ends")]
    for record in records:
        conversation.append(("user", record["prompt"]))
        whole = answered(conversation, trained_export, tmp_path, mode, capsys)
        rendered = "".join(f"{role[0].upper()}<s>{content}</s>" for role, content in conversation) + "A<s>"
        assert whole["prompt"] == rendered
        for name in ("mode", "text", "token_ids", "forwards", "tokens_per_forward", "finish"):
            assert whole[name] == record[name], name
        conversation.append(("assistant", record["text"]))
    assert all(record["accepted_length"] >= 1 for record in records)
    assert any(record["text"] for record in records)


def test_modes_are_switched_between_turns(chat: Chat) -> None:
    commands = [line for mode in MODES for line in (f"/mode {mode}", "/again")]
    records = chat(["seven times", *commands, "/reset", "seven times", "/quit", "never sent"])
    assert [record["mode"] for record in records] == ["linear", *MODES, "quadratic"]
    assert {record["prompt"] for record in records} == {"seven times"}
    texts = [record["text"] for record in records]
    # Self-speculation gives AR's text.
    assert texts[0] == texts[1] == texts[3] == texts[4] == texts[5] != texts[2]
    assert records[1]["tokens_per_forward"] < records[4]["tokens_per_forward"]


def test_the_system_prompt_is_set_and_removed(chat: Chat) -> None:
    lines = ["is that", "/reset", "/system ends here", "is that", "/reset", "/system", "is that"]
    first, with_system, last = chat(lines)
    assert first["text"] == last["text"] != with_system["text"]
    # S, BOS and EOS around it.
    assert with_system["prompt_tokens"] == first["prompt_tokens"] + 3 + len("ends here")


def test_the_oldest_turns_are_dropped_from_a_long_conversation(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    records = chat(["a" * 40, "b" * 30, "c" * 20], "--mode", "ar")
    assert [record["dropped_turns"] for record in records] == [0, 1, 0]
    assert records[1]["prompt_tokens"] == len("U<") + 30 + len("A<>")


def test_a_message_that_starts_with_a_slash(chat: Chat) -> None:
    (record,) = chat(["//seven is"])
    assert record["prompt"] == "/seven is"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 90, "the message is too long: after 95 tokens of prompt the context of 96 has no room for"),
        (b"/mood ar", "/mood is no command; there are /help, /mode, /image, /system, /again, /reset, /quit"),
        (b"/mode turbo", "/mode: 'turbo' is none of ar, diffusion, linear, quadratic"),
        (b"/again", "/again: there is no message yet"),
        (b"is <mask> this", "contains the mask token"),
        (b"seven\n\nis\xff\n", "standard input:3: is not UTF-8 at byte 2 of the line"),
    ],
    ids=["long", "command", "mode", "again", "mask", "bytes"],
)
def test_a_line_that_cannot_be_answered_ends_a_chat_from_a_pipe(
    trained_export: Path,
    typed: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
) -> None:
    typed(content)
    capsys.readouterr()
    assert main(words(trained_export, "--chat", *SETTINGS)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


class Terminal:
    """Somebody who types lines; an exception among them is what the keyboard sends."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines: Iterator[str | BaseException] = iter(lines)

    def __call__(self, prompt: str = "") -> str:
        line = next(self.lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def talk(monkeypatch: pytest.MonkeyPatch, export: Path, lines: Terminal, *more: object) -> int:
    monkeypatch.setattr("builtins.input", lines)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    return main(words(export, "--chat", *SETTINGS, *more))


def test_a_terminal_goes_on_after_mistakes_and_ends_with_its_input(
    trained_export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Terminal("/mode turbo", KeyboardInterrupt(), '"""seven', 'times"""', "/help", "x" * 90, "is that")
    assert talk(monkeypatch, trained_export, lines) == 0
    captured = capsys.readouterr()
    assert "error: /mode: 'turbo' is none of" in captured.err
    assert "Ctrl-D or /quit ends" in captured.err
    assert "/system [TEXT]" in captured.err
    assert "error: the message is too long" in captured.err
    assert captured.err.count("tokens per forward, accepted length") == 2


def test_a_terminal_sees_an_answer_grow(
    trained_export: Path, monkeypatch: pytest.MonkeyPatch, typed: Callable[[bytes], None]
) -> None:
    from nld_train.decoding.command_line import chat as module
    from nld_train.decoding.command_line import terminal

    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system="standard", width=80)
    monkeypatch.setattr(module, "plain_console", lambda **_: console)
    monkeypatch.setattr(terminal, "_REFRESH_SECONDS", 0.0)
    typed(b"seven times\n/mode diffusion\nis that\n")
    assert main(words(trained_export, "--chat", *SETTINGS)) == 0
    linear, _, diffusion = text.getvalue().partition("mode diffusion")
    assert "tokens per forward, accepted length" in linear
    assert "\u2591" in diffusion
    assert "tokens per forward" in diffusion
    assert "seven times" not in text.getvalue()


def test_ctrl_c_stops_an_answer(
    chat: Chat, trained_export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nld_train.decoding.command_line import chat_answers as module

    whole = chat(["seven times"], "--mode", "ar")
    decode = module.decode
    pressed = []

    def interrupted(*arguments: Any, **more: Any) -> Any:
        *others, observer = arguments

        def observe(progress: Any) -> None:
            observer(progress)
            if not pressed and len(progress.tokens) == 5:
                pressed.append(True)
                raise KeyboardInterrupt

        return decode(*others, observe, **more)

    monkeypatch.setattr(module, "decode", interrupted)
    capsys.readouterr()
    assert talk(monkeypatch, trained_export, Terminal("seven times", "is that"), "--json", "--mode", "ar") == 0
    stopped, after = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (stopped["finish"], stopped["token_ids"]) == ("stopped", whole[0]["token_ids"][:5])
    # What there was of the answer is part of the conversation.
    assert after["prompt_tokens"] == whole[0]["prompt_tokens"] + len(stopped["text"].encode()) + 1 + 3 + 7 + 2
    assert after["finish"] != "stopped"
    # Of the stopped call nothing is kept: the next one computes all.
    assert (stopped["prefill_tokens"], after["prefill_tokens"]) == (None, after["prompt_tokens"])


def test_prompts_become_messages(trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "seven times"},
        {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "is"}]},
        {"messages": [{"role": "user", "content": "that"}], "tools": [{"name": "f"}]},
        {"prompt": "shown", "prompt_token_ids": [70, 71, 72]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = words(trained_export, "--prompts", tmp_path / "rows.jsonl", "--mode", "ar", "--json", *SETTINGS[:4])
    assert main([*given, "--chat", "--system", "ends"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in found] == [
        "S<s>ends</s>U<s>seven times</s>A<s>",
        "S<s>own</s>U<s>is</s>A<s>",
        'F<s>[{"name": "f"}]</s>S<s>ends</s>U<s>that</s>A<s>',
        "shown",
    ]
    # Without --chat a text is continued, and a conversation still answered.
    assert main(given) == 0
    plain = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in plain][:2] == ["seven times", "S<s>own</s>U<s>is</s>A<s>"]
    assert plain[1]["token_ids"] == found[1]["token_ids"]
    assert plain[3]["token_ids"] == found[3]["token_ids"]


CHAT = ("--chat", *SETTINGS[:2])
BAD: list[tuple[tuple[object, ...], str]] = [
    (("--chat",), "--chat: the tokenizer has no chat template; name one with --chat-template FILE"),
    ((*CHAT, "--compare"), "--chat: talks in one mode at a time"),
    ((*CHAT, "--tensor", "2"), "--chat: one process talks"),
    ((*CHAT, "--mode", "ar", "--max-new-tokens", "91"), "96 has no room for --max-new-tokens 91"),
    ((*CHAT, "--chat-template-args", "[1]"), "--chat-template-args: must be a JSON object"),
    ((*CHAT, "--threshold", "2"), "threshold: 2.0 is not in [0, 1]"),
    (("--chat", "--chat-template", "nowhere.jinja"), "--chat-template nowhere.jinja: No such file"),
    (("--mode", "ar", "--prompt", "a", "--system", "b"), "--system: only conversations have a system prompt"),
    (("--mode", "ar"), "one of the arguments --prompt --prompts --chat is required"),
    (("--chat", "--prompt", "a"), "one of the arguments --mode --compare is required"),
    (("--chat", "--prompt", "a", "--mode", "ar"), "--prompt: the tokenizer has no chat template"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_what_cannot_be_a_chat_is_one_line(
    trained_export: Path, capsys: pytest.CaptureFixture[str], given: tuple[object, ...], message: str
) -> None:
    assert message in refusal(capsys, main, trained_export, *given)


def test_a_template_that_fails_on_the_system_prompt_is_found_before_the_weights(
    trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from checkpoint_convert import decoding_sources

    monkeypatch.setattr(decoding_sources, "_open_export", lambda *_: pytest.fail("opened"))
    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    )
    given = ("--chat", "--chat-template", tmp_path / "strict.jinja", "--system", "be brief")
    said = refusal(capsys, main, trained_export, *given)
    assert "the chat template fails: no system prompts" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, ":1: messages must be a list of objects with role and content, at least one"),
        ({"messages": "hello"}, ":1: messages must be a list"),
        ({"messages": [{"content": "a"}]}, ":1: message 1 must be an object with a text under 'role'"),
        ({"messages": [{"role": "user", "content": 5}]}, ":1: the content of message 1 is no text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, ":1: ends with an answer"),
        ({"messages": [{"role": "critic", "content": "a"}]}, ":1: the chat template fails: no letter for the role"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": "f"}, ":1: tools must be a list of JSON schemas"),
        ({"prompt": "a", "prompt_token_ids": ["a"]}, ":1: prompt_token_ids must be a list of token ids"),
        ({"prompt": "a", "continuation_token_ids": 7}, ":1: continuation_token_ids must be a list of token ids"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(
    trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    given = ("--mode", "ar", "--prompts", tmp_path / "rows.jsonl", *SETTINGS[:2])
    assert f"{tmp_path}/rows.jsonl{message}" in refusal(capsys, main, trained_export, *given)
