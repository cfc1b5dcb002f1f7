"""`nld-data prompts`: pieces of the documents of a set, of one length, the same at every call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chat_sets import Turn, write_chat_manifest, write_chat_set

from nld_train.commands.data import main
from nld_train.data.chat.prompt import ChatFormat
from nld_train.data.manifest import read_manifest
from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer, tokenizer_hash
from nld_train.decoding.command_line.prompts import read_prompts
from nld_train.decoding.command_line.request import PromptEncoder

LENGTHS = (10, 100, 41, 40, 39, 400)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Documents of these lengths without their end token, each in letters of its own."""
    texts = ["".join(chr(97 + 4 * number + i % 4) for i in range(length)) for number, length in enumerate(LENGTHS)]
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    assert main(["prepare", str(tmp_path / "corpus.txt"), "--out", str(tmp_path), "--documents-per", "line"]) == 0
    return str(tmp_path / "corpus")


def prompts_of(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def test_prompts_end_in_the_middle_of_documents_that_are_long_enough(prefix: str, tmp_path: Path) -> None:
    out = tmp_path / "prompts.jsonl"
    assert main(["prompts", prefix, "--out", str(out), "--count", "4", "--tokens", "20"]) == 0
    # 39 letters and the end token are 40 tokens, twice 20.
    expected, following = [], []
    for number in (1, 2, 3, 4, 5):
        middle = (LENGTHS[number] + 1) // 2
        expected.append("".join(chr(97 + 4 * number + i % 4) for i in range(middle - 20, middle)))
        # The end token is the last of a document.
        after = "".join(chr(97 + 4 * number + i % 4) for i in range(middle, min(middle + 20, LENGTHS[number])))
        following.append([*letters(after), 2][:20])
    found = prompts_of(out)
    continuations = [prompt.continuation for prompt in read_prompts(out)]
    assert continuations == [tuple(following[index * len(expected) // 4]) for index in range(4)]
    assert len(found) == 4
    assert found == [expected[index * len(expected) // 4] for index in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "6", "--tokens", "20"], "5 documents of 40 tokens or more, fewer than --count 6"),
        (["--count", "0"], "--count and --tokens must be at least 1"),
    ],
)
def test_what_cannot_be_taken_is_refused(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "prompts.jsonl"
    assert main(["prompts", prefix, "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_conversations_end_where_their_last_answer_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the ids on disk, which their text need not give again."""
    save_tokenizer(bytes_tokenizer(), str(tmp_path / "tokenizer"))
    answers = [[*letters("thirty"), 2], [*letters("no"), 2]]
    conversations = [
        [Turn("user", [1, *letters("seven?"), 2]), Turn("assistant", [1, *answers[0]], len(answers[0]))],
        [Turn("user", letters("never answered"))],
        [Turn("user", [1, *letters("is it a long one?"), 2]), Turn("assistant", [1, *answers[1]], len(answers[1]))],
    ]
    prefix = write_chat_set(tmp_path / "chat", conversations)
    write_chat_manifest(prefix, conversations)
    manifest = read_manifest(prefix)
    assert manifest is not None
    replace(manifest, tokenizer_hash=tokenizer_hash(str(tmp_path / "tokenizer"))).write(f"{prefix}.manifest.json")
    out = tmp_path / "prompts.jsonl"
    assert main(["prompts", prefix, "--out", str(out), "--count", "2"]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {
        "prompt": "<s>seven?</s><s>",
        "prompt_token_ids": [1, *letters("seven?"), 2, 1],
        "answer": "thirty",
        "continuation_token_ids": answers[0],
    }
    assert second["prompt"] == "<s>is it a long one?</s><s>"
    found = read_prompts(out)
    assert [list(prompt.token_ids or ()) for prompt in found] == [row["prompt_token_ids"] for row in (first, second)]
    assert [prompt.continuation for prompt in found] == [tuple(answer) for answer in answers]
    encoder = PromptEncoder(ChatFormat(load_tokenizer(str(tmp_path / "tokenizer"))))
    assert encoder.encode(found[0]) == (first["prompt"], first["prompt_token_ids"])
    for words, message in (
        (["--count", "3"], "has 2 conversations with an answer after a prompt, fewer than --count 3"),
        (["--count", "2", "--tokens", "10"], "has 1 conversations with an answer after a prompt of at most 10 tokens"),
    ):
        capsys.readouterr()
        assert main(["prompts", prefix, "--out", str(out), *words]) == 2
        assert message in capsys.readouterr().err


def letters(text: str) -> list[int]:
    return [byte + 4 for byte in text.encode()]
