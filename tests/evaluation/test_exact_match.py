"""`nld-exact`: which answers are right, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_helpers import refusal

from nld_train.commands.decode import main as decode
from nld_train.commands.exact import main
from nld_train.data import chat
from nld_train.data.tokenizer import load_tokenizer
from nld_train.decoding import DecodeResult
from nld_train.evaluation.exact_match import ExactQuestion, scores
from nld_train.evaluation.right_answers import ExactMatch

# The run's tokenizer has no template of its own.
TEMPLATE = ["--chat-template", str(Path(chat.__file__).with_name("default.jinja"))]
QUESTIONS = [("seven times", "copy"), ("eight is", "copy"), ("and that", "sort")]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    write(path, ["seven", "eight", "that"])
    return path


def write(path: Path, answers: list[str]) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], "kind": kind}
        for (text, kind), answer in zip(QUESTIONS, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_answer_is_right_if_it_ends_and_all_of_it_is_right(corpus: Path) -> None:
    tokenizer = load_tokenizer(str(corpus / "tokenizer"))
    texts = ["ab", "abc", "abc", "ab"]
    finish = ["stop", "length", "stop", "stop"]
    ids = [
        [*tokenizer.encode(text, add_special_tokens=False), *([2] if end == "stop" else [])]
        for text, end in zip(texts, finish, strict=True)
    ]
    result = DecodeResult(
        token_ids=ids,
        finish=finish,  # type: ignore[arg-type]
        forwards=9,
        prefill=1,
        sequence_forwards=[1, 2, 2, 3],
        prefill_tokens=[1] * 4,
        accepted=[[]] * 4,
        committed_by=[[0] * len(one) for one in ids],
        drafted=[[False] * len(one) for one in ids],
        seconds=[0.0] * 4,
    )
    kinds = ["copy", "copy", "sort", "sort"]
    found = scores(ExactMatch((2,), tokenizer), [ExactQuestion([1], "ab", kind) for kind in kinds], result)
    assert {kind: figures["exact"] for kind, figures in found.items()} == {"all": 0.5, "copy": 0.5, "sort": 0.5}
    assert {kind: figures["new_tokens"] for kind, figures in found.items()} == {"all": 13, "copy": 6, "sort": 7}
    assert found["all"]["tokens_per_forward"] == 13 / 8
    assert found["sort"]["questions"] == 2


def test_every_mode_is_scored(
    trained: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompts", str(questions), *TEMPLATE, "--max-new-tokens", "16", "--batch-size", "2"]
    assert main([str(trained), *words, "--block-length", "4", "--output", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "scores.json").read_text())
    assert list(found) == ["ar", "diffusion", "linear", "quadratic"]
    for mode, by_kind in found.items():
        assert mode in printed
        assert list(by_kind) == ["all", "copy", "sort"]
        assert [by_kind[kind]["questions"] for kind in by_kind] == [3, 2, 1]
    assert found["linear"]["all"]["new_tokens"] == found["ar"]["all"]["new_tokens"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text, _ in QUESTIONS)
    )
    assert decode([str(trained), "--mode", "ar", "--json", "--prompts", str(prompts), *words[2:]]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for key in ("new_tokens", "forwards"):
        assert found["ar"]["all"][key] == sum(record[key] for record in records)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a"}', "questions.jsonl:1: must be an object with a conversation under 'messages'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "questions.jsonl:1: the last message must be the assist"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "questions.jsonl:1: messages must be a list"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "kind": 1}',
            "'kind'",
        ),
    ],
)
def test_rows_without_a_right_answer(
    trained: Path, questions: Path, row: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions.write_text(row + "\n")
    assert message in refusal(capsys, main, trained, *TEMPLATE, "--prompts", questions)


def test_text_is_no_conversation(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "questions.txt").write_text("a\n")
    assert "must be JSONL" in refusal(capsys, main, trained, "--prompts", tmp_path / "questions.txt")
