"""What files and models say: read by one reader, printed in one form."""

from __future__ import annotations

import ast
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from documented_commands import ROOT
from rich.table import Table
from rich.text import Text

from nld_train.console import plain_console
from nld_train.errors import UserError, exit_status
from nld_train.outside_json import (
    as_record,
    brief,
    is_finite_number,
    parse_json,
    parse_object,
    parse_yaml,
    read_json,
    read_object,
)
from nld_train.printable import markdown, markdown_code, one_line, printable, printable_json
from nld_train.progress import progress_bar
from nld_train.training.checkpoint.contents import Progress

# A window title, a screen that is cleared, C1's form of the same, text shown backwards, half a pair, markup of rich.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202egnp.exe\u2066\ud83d[/nope][bold]\x7f"
BAD_JSON: dict[str, tuple[bytes, str]] = {
    "an integer of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "integer of more than 4300 digits"),
    "nested too deeply": (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
    "objects nested too deeply": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply"),
    "not UTF-8": (b'{"a": "caf\xe9"}', "not UTF-8 (byte 10)"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 (byte 0)"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "c is duplicated"),
    "cut": (b'{"a": 1,\n "b"', "at line 2, column 5"),
    "empty": (b"", "at column 1"),
    "zeros after a crash": (b"\0" * 100, "at column 1"),
    "two values": (b'{"a": 1}{"a": 2}', "Extra data at column 9"),
    "a control character": (b'{"a": "x\ty"}', "Invalid control character at column 9"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json_is_one_line_with_file_and_place(kind: str, tmp_path: Path) -> None:
    content, expected = BAD_JSON[kind]
    (tmp_path / "bad.json").write_bytes(content)
    for read in (lambda: read_json(tmp_path / "bad.json"), lambda: parse_json(content, f"{tmp_path / 'bad.json'}")):
        with pytest.raises(UserError) as found:
            read()
        message = str(found.value)
        assert message.startswith(f"{tmp_path}/bad.json: ")
        assert expected in message
        assert "\n" not in message
        assert len(message) < 300 + len(str(tmp_path))


def test_a_line_of_a_file_is_named_with_it() -> None:
    with pytest.raises(UserError, match=r"^prompts\.jsonl:3: must be a JSON object, not list$"):
        parse_object("[]", "prompts.jsonl:3")
    assert parse_object(b'\xef\xbb\xbf{"a": "\xc3\xa9", "n": NaN}', "x")["a"] == "\u00e9"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "missing"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with socket.socket(socket.AF_UNIX) as listening:
        make: dict[str, Callable[[], object]] = {
            "pipe": lambda: os.mkfifo(path),
            "socket": lambda: listening.bind(str(path)),
            "device": lambda: path.symlink_to("/dev/zero"),
            "folder": path.mkdir,
            "missing": lambda: None,
        }
        make[kind]()
        with pytest.raises(UserError) as found:
            read_object(path)
    assert str(found.value).startswith(f"{path}: ")


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub."""
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "config.json").symlink_to("blob")
    assert read_object(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "9" * 5000,
        "a: 2001-99-99",
        "a: [",
        "[" * 2000 + "]" * 2000,
        "? [1, 2]\n: 3",
        "a: !!python/object/apply:os.system [ls]",
    ],
)
def test_bad_yaml_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^config\.yaml: ") as found:
        parse_yaml(text, "config.yaml")
    assert "\n" not in str(found.value)


def test_a_value_in_a_message_is_short() -> None:
    laughs: list[object] = ["ha"]
    for _ in range(40):
        laughs = [laughs] * 10
    assert len(brief(laughs)) < 200
    assert len(brief("x" * 10**6)) < 200
    assert brief({"a": [1, None, True, "\u00e9"]}) == '{"a": [1, null, true, "\u00e9"]}'
    assert brief(1 << 10**5).endswith("...")
    assert [is_finite_number(value) for value in (1, 0.5, 10**400, float("nan"), float("inf"), True, "1", None)] == (
        [True, True] + 6 * [False]
    )


def test_progress_with_values_of_other_types_is_refused() -> None:
    sound = {"step": 4, "stage": "ar", "stage_step": 4, "stage_steps": 9, "data": {"ar": "x"}, "later": 1}
    assert as_record(Progress, sound, "progress.json").step == 4
    for key, value in (("step", "4"), ("stage", 3), ("data", {"ar": 3}), ("stage_steps", True), ("step", 4.5)):
        with pytest.raises(UserError, match=rf"^progress\.json: {key} must not be "):
            as_record(Progress, {**sound, key: value}, "progress.json")
    with pytest.raises(UserError, match="stage is missing"):
        as_record(Progress, {"step": 4}, "progress.json")


def test_a_hostile_name_is_printed_as_escapes() -> None:
    shown = printable(HOSTILE)
    assert shown.isascii()
    assert shown.isprintable()
    assert shown.startswith("\\x1b]0;owned\\x07\\x1b[2J\\x9b2J\\u202egnp.exe")
    kept = "caf\u00e9 \u65e5\u672c\u3000\u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f469\n\t\u00a0"
    assert printable(kept) == kept
    assert one_line("a\u2028b\r\n  c\u200b") == "a b c\\u200b"


def test_json_with_hostile_text_is_printable_and_the_same_value() -> None:
    value = {"text": HOSTILE + "\U000e0041\u2029caf\u00e9\n", "ids": [1, None]}
    for indent in (None, 1):
        shown = printable_json(value, indent)
        assert printable(shown) == shown
        assert "caf\u00e9" in shown
        assert json.loads(shown) == value


def test_an_error_with_a_hostile_name_is_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"model: {HOSTILE}\n\x85{'x' * 10_000}")

    assert exit_status(fail) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: model: \\x1b]0;")
    assert line.count("\n") == 1
    assert line.removesuffix("\n").isprintable()
    assert len(line) < 2100


def test_tables_and_lines_show_hostile_text_as_it_is() -> None:
    file = io.StringIO()
    console = plain_console(file=file, force_terminal=True, width=200, color_system=None)
    table = Table("name", title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    console.print(table)
    console.print(HOSTILE, ":smile: [red]x[/red]", soft_wrap=True)
    console.rule(HOSTILE)
    found = file.getvalue()
    assert found.count("\\x1b[2J\\x9b2J\\u202egnp.exe\\u2066\\ud83d[/nope][bold]\\x7f") == 5
    assert ":smile: [red]x[/red]" in found
    assert printable(found) == found


def test_a_progress_bar_of_a_hostile_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar(f"import {HOSTILE}", 10, in_bytes=True) as advance:
        advance(10)
    shown = capsys.readouterr().err
    assert "[/nope][bold]" in shown
    assert "\x1b]0;" not in shown
    assert "\u202e" not in shown


def test_a_hostile_name_in_markdown() -> None:
    assert markdown("a|b\n[x](http://y) <b>*_`") == r"a\|b \[x\]\(http://y\) \<b\>\*\_\`"
    assert markdown_code("a``b\x1b") == "``` a``b\\x1b ```"
    assert markdown_code("tiny_run") == "`tiny_run`"


# Readers whose files this program wrote itself, moments before or inside the same command.
OWN_READERS = {
    "nld_train/outside_json.py",
}


def _calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_outside_text_has_one_reader_and_one_console() -> None:
    """A reader that calls `json.loads` itself, or a console that reads markup, is a traceback on the next odd file."""
    for path in [path for folder in ("nld_train", "checkpoint_convert") for path in (ROOT / folder).rglob("*.py")]:
        name, calls = path.relative_to(ROOT).as_posix(), _calls(path)
        if name not in OWN_READERS:
            assert not calls & {"json.loads", "json.load"}, name
        assert "Console" not in calls, name
