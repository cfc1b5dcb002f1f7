"""Pieces of text by token, and rows that grow."""

from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nld_train.decoding import Progress
from nld_train.decoding.command_line import terminal
from nld_train.decoding.command_line.observers import InOrder, Observers
from nld_train.decoding.command_line.terminal import Screen, SequenceView, Watcher, pieces, styles_of
from nld_train.printable import printable


def decode_bytes(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def decode_words(ids: list[int]) -> str:
    """Drops the space at the beginning of a text, as SentencePiece does."""
    return "".join(f" w{number}" for number in ids).lstrip()


def test_a_character_goes_to_the_token_that_completes_it() -> None:
    assert pieces(decode_bytes, "a\u00e9\u20ac!".encode()) == ["a", "", "\u00e9", "", "", "\u20ac", "!"]
    assert "".join(pieces(decode_bytes, [0x61, 0xC3, 0x61, 0xFF])) == "a\ufffda\ufffd"


def test_spaces_between_tokens_stay() -> None:
    assert "".join(pieces(decode_words, [1, 2, 3])) == "w1 w2 w3"


def test_nothing_printed_controls_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\tc\n") == "a\\x1b[2Jb\\r\tc\n"


def test_masks_become_text_in_the_colour_of_their_pass() -> None:
    row = SequenceView("diffusion")
    a, b, c, d = b"abcd"
    row.update(Progress(0, (), (a, None, None), committed_by=(0, 0, 0), drafted=(False,) * 3))
    assert row.render(decode_bytes).plain == "a\u2591\u2591"
    row.update(Progress(0, (), (a, None, c), committed_by=(0, 0, 1), drafted=(False, False, True)))
    assert row.render(decode_bytes).plain == "a\u2591c"
    passes, drafted = (0, 2, 1), (False, True, True)
    row.update(Progress(0, (a, b, c), committed_by=passes, drafted=drafted))
    assert row.styles == styles_of("diffusion", passes, drafted)
    row.update(Progress(0, (a, b, c), (d, None), committed_by=(*passes, 3, 0), drafted=(*drafted, False, False)))
    assert row.render(decode_bytes).plain == "abcd\u2591"
    assert row.styles[0] == row.styles[3] == ""
    assert len({row.styles[1], row.styles[2], ""}) == 3


def test_rejected_drafts_are_behind_the_text() -> None:
    row = SequenceView("linear")
    a, b, c, d = b"abcd"
    row.update(Progress(0, (a,), committed_by=(0,), drafted=(False,)))
    row.update(Progress(0, (a, b, c), rejected=(d,), committed_by=(0, 1, 1), drafted=(False, True, False)))
    assert row.render(decode_bytes).plain == "abcd"
    assert row.styles == ["", "green", ""]
    row.update(Progress(0, (a, b, c, d), committed_by=(0, 1, 1, 2), drafted=(False, True, False, True)))
    assert row.render(decode_bytes).plain == "abcd"
    assert row.styles[-1] == "green"


def shown(texts: list[str]) -> list[str]:
    """Lines on a screen of 6 lines of 10 characters, of a console that leaves long lines to the terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, width=10, height=6, soft_wrap=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        live.update(Screen([Text(text) for text in texts]), refresh=True)
        assert isinstance(console.file, io.StringIO)
        # Commands of the terminal aside.
        lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", console.file.getvalue()).splitlines()
    return [line.strip() for line in lines]


def test_what_grows_is_seen_to_its_end() -> None:
    numbers = " ".join(f"{number:04}" for number in range(40))
    assert shown(["0 1", "2 3"]) == ["0 1", "2 3"]
    assert shown([numbers])[-1] == "0038 0039"
    assert len(shown([numbers])) == 6
    ends = ["0034 0035", "0036 0037", "0038 0039", "0036 0037", "0038 0039", "new"]
    assert shown([numbers, f"{numbers} new"]) == ends
    assert shown([numbers] * 9) == ["0038 0039"] * 6


def test_sequences_are_passed_on_in_order_once_finished() -> None:
    taken: list[int] = []
    observer = InOrder(lambda row: taken.append(row.sequence))
    seen = []
    for row, finish in [(0, None), (2, "stop"), (1, None), (1, "length"), (0, "stop"), (4, "stop"), (3, "length")]:
        observer(Progress(row, (1,), finish=finish))
        seen.append(list(taken))
    assert seen == [[], [], [], [], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4]]


def test_observers_know_what_they_cost() -> None:
    seen: list[Progress] = []
    observer = Observers(lambda _: time.sleep(0.02), None, seen.append)
    begin = time.perf_counter()
    for row in range(3):
        observer(Progress(row, (1,)))
    assert 0.06 <= observer.seconds <= time.perf_counter() - begin
    assert [progress.sequence for progress in seen] == [0, 1, 2]


def test_a_finished_row_is_printed_above_those_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_REFRESH_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=10)
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    with Watcher(console, tokenizer, "ar", ["first:", "second:", "third:"]) as watcher:
        for row in (0, 1):
            watcher(Progress(row, (97,), committed_by=(0,), drafted=(False,)))
        done = Progress(0, (97, 98), finish="length", committed_by=(0, 1), drafted=(False, False))
        watcher(done)
        assert isinstance(console.file, io.StringIO)
        console.file.truncate(0)
        watcher.print(done)
        watcher(Progress(2, (99,), committed_by=(0,), drafted=(False,)))
        lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", console.file.getvalue()).split()
    assert lines[lines.index("first:ab") :] == ["first:ab", "second:a", "second:a", "third:c"]
