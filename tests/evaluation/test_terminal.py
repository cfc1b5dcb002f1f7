"""Pieces of text by token, and rows that grow."""

from __future__ import annotations

from nld_train.decoding import Progress
from nld_train.decoding.terminal import RowView, pieces, printable


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


def test_nothing_printed_commands_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\tc\n") == "a\ufffd[2Jb\ufffd\tc\n"


def test_masks_become_text_in_the_colour_of_their_pass() -> None:
    row = RowView("diffusion")
    a, b, c, d = b"abcd"
    row.update(Progress(0, (), (a, None, None)))
    assert row.render(decode_bytes).plain == "a\u2591\u2591"
    row.update(Progress(0, (), (a, None, c)))
    assert row.render(decode_bytes).plain == "a\u2591c"
    row.update(Progress(0, (a, b, c)))
    row.update(Progress(0, (a, b, c), (d, None)))
    assert row.render(decode_bytes).plain == "abcd\u2591"
    assert row.styles[0] == row.styles[3] == ""
    assert len({row.styles[1], row.styles[2], ""}) == 3


def test_refused_drafts_stand_behind_the_text() -> None:
    row = RowView("linear")
    a, b, c, d = b"abcd"
    row.update(Progress(0, (a,)))
    row.update(Progress(0, (a, b, c), rejected=(d,)))
    assert row.render(decode_bytes).plain == "abcd"
    assert row.styles == ["", "green", ""]
    row.update(Progress(0, (a, b, c, d)))
    assert row.render(decode_bytes).plain == "abcd"
