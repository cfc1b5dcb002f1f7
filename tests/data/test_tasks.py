"""`nld-data tasks`: each answer is right, held-out questions are in no training data, the same bytes every time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nld_train.commands.data import main
from nld_train.data.tasks.kind import DIFFICULTIES
from nld_train.data.tasks.registry import KINDS

Rows = list[dict[str, Any]]
TABLE = re.compile(r"([^a-z ])([a-z]+)")


def written(folder: Path, *words: str) -> dict[str, Rows]:
    assert main(["tasks", str(folder), "--documents", "20", *words]) == 0
    files = {path.stem: path.read_text().splitlines() for path in folder.glob("*.jsonl")}
    return {name: [json.loads(line) for line in lines] for name, lines in files.items()}


def right_answer(question: str, before: list[str]) -> str:
    """Read from the words of a question, and of the messages before it, alone."""
    order, _, rest = question.partition(" ")
    if rest == "it":
        rest = before[-1]
    if order == "add":
        first, second = rest.split(" + ")
        units, tens = (int(first[-1]) + int(second[-1]), int(first[:-1]) + int(second[:-1] or 0))
        return f"{units:02} + {tens}0 = {int(first) + int(second)}"
    if order == "count":
        letter, text = rest.split(" in ")
        return f"{re.sub(f'[^{letter}]', '-', text)}: {len(re.findall(letter, text))} {letter}"
    if order in ("lookup", "find"):
        table = dict(TABLE.findall(" ".join([*before[:1], question])))
        return " ".join(f"{name}{table[name]}" for name in question.rpartition("find ")[-1].split())
    by_order = {"copy": str, "upper": str.upper, "reverse": lambda text: " ".join(reversed(text.split()))}
    return by_order[order](rest) if order in by_order else " ".join(map(str, sorted(map(int, rest.split()))))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind: str) -> None:
    random = Random(3)
    for number in range(300):
        turns = KINDS[kind].draw(random, DIFFICULTIES[number % 3])
        before: list[str] = []
        for turn in turns:
            assert turn.answer == right_answer(turn.question, before), turn
            before += turn


def test_harder_questions_are_longer() -> None:
    for kind in KINDS.values():
        lengths = [
            sum(len(" ".join(turn)) for _ in range(200) for turn in kind.draw(random, difficulty))
            for random in [Random(1)]
            for difficulty in DIFFICULTIES
        ]
        assert sorted(lengths) == lengths, kind.name


def test_held_out_questions_are_in_no_training_data(tmp_path: Path) -> None:
    """Of another seed either: the question decides."""
    one = written(tmp_path / "one", "--conversations", "3000", "--held-out", "30")
    other = written(tmp_path / "other", "--conversations", "3000", "--held-out", "30", "--seed", "1")
    held_out = [first_question(row) for files in (one, other) for row in files["held-out"]]
    assert not {first_question(row) for files in (one, other) for row in files["train"]} & set(held_out)
    assert one["train"] != other["train"]
    for files in (one, other):
        assert [row["kind"] for row in files["held-out"]] == [kind for kind in KINDS for _ in range(30)]
        assert len({json.dumps(row["messages"]) for row in files["held-out"]}) == 30 * len(KINDS)
        assert {row["kind"] for row in files["train"]} == set(KINDS)


def first_question(row: dict[str, Any]) -> str:
    question: str = row["messages"][0]["content"]
    return question


def test_answers_have_a_dozen_characters_in_the_mean(tmp_path: Path) -> None:
    rows = written(tmp_path, "--conversations", "1", "--held-out", "60")["held-out"]
    answers = [row["messages"][-1]["content"] for row in rows]
    assert 9 <= sum(map(len, answers)) / len(answers) <= 15


def test_the_same_request_writes_the_same_bytes(tmp_path: Path) -> None:
    words = ("--conversations", "50", "--held-out", "3", "--kinds", "add", "copy")
    written(tmp_path / "one", *words)
    written(tmp_path / "two", *words)
    before = (tmp_path / "one/train.jsonl").stat().st_mtime_ns
    written(tmp_path / "one", *words)
    assert (tmp_path / "one/train.jsonl").stat().st_mtime_ns == before
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert contents[0] == contents[1]
    assert {path.name for path in contents[0]} >= {"train.jsonl", "held-out.jsonl", "add.yaml", "copy.yaml", "all.yaml"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "add", "divide"], "--kinds: divide is no kind of question; kinds: copy, "),
        (["--conversations", "0"], "--conversations, --held-out and --documents must be at least 1"),
        (["--kinds", "add", "--held-out", "2000"], "held-out questions of kind add"),
    ],
)
def test_bad_requests_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", str(tmp_path / "folder"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_file_in_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["tasks", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err
