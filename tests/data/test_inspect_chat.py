"""`nld-data inspect` of conversations: counts, and one conversation with its answers, blocks and masks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nld_train.commands.data import main

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "olleh it is"},
    {"role": "user", "content": "upper"},
    {"role": "assistant", "content": "HELLO"},
]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of two conversations."""
    folder = tmp_path_factory.mktemp("inspect")
    rows = [{"messages": MESSAGES}, {"instruction": "a", "output": "b"}]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", "--chat", str(folder / "in.jsonl"), "--out", str(folder), "--workers", "1"]) == 0
    return str(folder / "in")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


def test_a_set_shows_its_answers(chat: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, chat)
    # By hand: answers of 12, 6 and 2 tokens after prompts of 22, 10 and 6; each answer is one block of 32.
    expected = ("conversations .* 2, the longest of 50 tokens", r"answers .* 3 \(all\), 6\.7 tokens",
                r"tokens of answers .* 20 \(34\.5%\)", r"noisy stream .* 1\.66 per token")  # fmt: skip
    for line in expected:
        assert re.search(line, said), said


@pytest.mark.parametrize(
    ("blocks", "answers"),
    [
        ("answer", ["olleh it│ is</s>", "HELLO</s>"]),
        # The answers begin at tokens 22 and 44.
        ("document", ["ol│leh it i│s</s>", "HELL│O</s>"]),
    ],
)
def test_a_conversation_shows_prompts_answers_and_blocks(
    chat: str, capsys: pytest.CaptureFixture[str], blocks: str, answers: list[str]
) -> None:
    words = ["--conversation", "0", "--level", "0", "--block-size", "8", "--blocks", blocks]
    lines = shown(capsys, chat, *words).replace("⟦", "").replace("⟧", "").splitlines()
    assert "50 tokens, 2 answers of 18 tokens" in lines[0]
    assert lines[2::4] == ["S<s>Be brief.</s>U<s>hello</s>A<s>", "U<s>upper</s>A<s>"]
    assert lines[4::4] == answers
    assert lines[3].startswith("answer 1: 12 tokens, ")
    if blocks == "answer":
        assert "; blocks: 2; fill: 4, " in lines[3]
        assert "; blocks: 1; fill: 2, " in lines[7]
    else:
        assert "; blocks: 3; fill: 6, " in lines[3]
        assert "; blocks: 2; fill: 6, " in lines[7]


def test_masks_are_shown(chat: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [chat, "--conversation", "0", "--block-size", "8"]
    everything = shown(capsys, *words, "--level", "1").splitlines()
    assert everything[4] == "⟦olleh it⟧│⟦ is</s>⟧"
    assert everything[2] == "S<s>Be brief.</s>U<s>hello</s>A<s>"  # prompts are never masked
    half = shown(capsys, *words, "--level", "0.5", "--seed", "1")
    assert half == shown(capsys, *words, "--level", "0.5", "--seed", "1")
    assert half != shown(capsys, *words, "--level", "0.5", "--seed", "2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--conversation", "2"], "--conversation 2: .* holds conversations 0 to 1"),
        (["--conversation", "-1"], "--conversation -1: .* holds conversations 0 to 1"),
        (["--sample", "0"], "--sample: .*in is a set of conversations: give --conversation N"),
        (["--sample", "0", "--conversation", "0"], "--conversation: give it or --sample"),
        (["--conversation", "0", "--block-size", "0"], "--sequence-length and --block-size must be at least 1"),
    ],
)
def test_what_is_not_there_is_refused(
    chat: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["inspect", chat, *words]) == 2
    assert re.match(f"error: {message}", capsys.readouterr().err)


def test_a_set_of_texts_has_no_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert main(["prepare", str(tmp_path / "a.txt"), "--out", str(tmp_path)]) == 0
    assert main(["inspect", str(tmp_path / "a"), "--conversation", "0"]) == 2
    assert "a is a set of texts: give --sample N" in capsys.readouterr().err
