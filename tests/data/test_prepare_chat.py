"""`nld-data prepare --chat`: every source, the same bytes for any number of workers, atomic and resumable."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_templates as templates
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from nld_train.commands.data import main
from nld_train.data.answer_bits import AnswerBits
from nld_train.data.chat.default import default_template
from nld_train.data.manifest import check_against_model, is_chat_set, read_manifest
from nld_train.data.packed import indexed_dataset_module
from nld_train.data.shards import _ShardWriter
from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer
from nld_train.errors import UserError

Row = dict[str, Any]


def row(number: int) -> Row:
    """A conversation of one to three questions; the length of its answers varies, the last one can be empty."""
    messages: list[Row] = [{"role": "system", "content": f"é {number}"}] if number % 3 == 0 else []
    for turn in range(number % 3 + 1):
        messages.append({"role": "user", "content": f"question {number} {turn}"})
        messages.append({"role": "assistant", "content": "answer </s> " * ((number + turn) % 4)})
    if number % 7 == 0:
        # Arguments of several names: a column of structs has all of them in every row.
        call = {"type": "function", "function": {"name": "f", "arguments": {"xy"[number % 2]: {"z": number}}}}
        messages += [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "1"}]
    return {"messages": messages, "source": "made"}


ROWS = [row(number) for number in range(60)]


def write_jsonl(folder: Path) -> str:
    (folder / "in.jsonl").write_text("".join(json.dumps(each) + "\n\n" for each in ROWS))
    return str(folder / "in.jsonl")


def write_gzip(folder: Path) -> str:
    (folder / "in.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in ROWS).encode()))
    return str(folder / "in.jsonl.gz")


def write_array(folder: Path) -> str:
    (folder / "in.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))
    return str(folder / "in.json")


def write_parquet(folder: Path) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "in.parquet", row_group_size=16)
    return str(folder / "in.parquet")


def write_dataset(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "in"))
    return str(folder / "in")


def run(*arguments: str | Path) -> int:
    return main(["prepare", "--chat", *map(str, arguments)])


def stored(prefix: str | Path) -> list[tuple[list[int], list[bool]]]:
    """Ids and answers of each document, by Megatron's own reader."""
    indexed = indexed_dataset_module().IndexedDataset(str(prefix))
    bits, begin, found = AnswerBits(str(prefix), sum(map(len, indexed))), 0, []
    for document in indexed:
        found.append((document.tolist(), bits.read(begin, len(document)).tolist()))
        begin += len(document)
    return found


def expected(rows: list[Row]) -> list[tuple[list[int], list[bool]]]:
    """The same by transformers, up to the last answer of each row."""
    tokenizer = templates.hugging_face(bytes_tokenizer(), default_template())
    found = []
    for each in rows:
        last = max(number for number, message in enumerate(each["messages"]) if message["role"] == "assistant")
        spelled = json.loads(json.dumps(each["messages"][: last + 1]).replace("</s>", "\U000f1234"))
        whole = tokenizer.apply_chat_template(spelled, return_assistant_tokens_mask=True)
        ids, answers = [], []
        for token, answer in zip(whole["input_ids"], whole["assistant_masks"], strict=True):
            ids.append(token)
            answers.append(bool(answer))
        found.append(_with_text(ids, answers))
    return found


def _with_text(ids: list[int], answers: list[bool]) -> tuple[list[int], list[bool]]:
    """Bytes of `</s>` in the stead of a character that spells no special token."""
    character, text = [4 + byte for byte in "\U000f1234".encode()], [4 + byte for byte in b"</s>"]
    assert len(character) == len(text)
    for begin in range(len(ids)):
        if ids[begin : begin + 4] == character:
            ids[begin : begin + 4] = text
    return ids, answers


def same_files(first: Path, second: Path) -> bool:
    suffixes = (".bin", ".idx", ".answers.bin", ".turns.bin", ".counts.npy", ".chat_template.jinja")
    return all(Path(f"{first}{suffix}").read_bytes() == Path(f"{second}{suffix}").read_bytes() for suffix in suffixes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as a set of bytes."""
    folder = tmp_path_factory.mktemp("chat")
    assert run(write_jsonl(folder), "--out", folder / "out", "--name", "set", "--workers", "1") == 0
    return folder / "out" / "set"


def test_a_set_is_ids_and_bits_of_every_conversation(prepared: Path) -> None:
    found = stored(prepared)
    assert found == expected(ROWS)
    manifest = read_manifest(str(prepared))
    assert manifest is not None
    assert manifest.chat is not None
    assert is_chat_set(str(prepared))
    template = Path(f"{prepared}.chat_template.jinja").read_bytes()
    assert template.decode() == default_template()
    assert manifest.chat.template_hash == hashlib.sha256(template).hexdigest()
    assert (manifest.documents, manifest.chat.conversations, manifest.end_of_document) == (60, 60, None)
    assert manifest.chat.longest == max(len(ids) for ids, _ in found)
    assert manifest.chat.answer_tokens == sum(sum(answers) for _, answers in found)
    assert manifest.chat.answer_count == sum(each["role"] == "assistant" for row in ROWS for each in row["messages"])
    assert manifest.chat.end_of_turn == 2
    assert load_tokenizer(str(prepared.with_name("tokenizer"))).chat_template == default_template()
    check_against_model(str(prepared), 260, 3, str(prepared.with_name("tokenizer")))


@pytest.mark.parametrize("write", [write_gzip, write_array, write_parquet, write_dataset])
def test_every_source_gives_the_same_bytes(prepared: Path, tmp_path: Path, write: Callable[[Path], str]) -> None:
    assert run(write(tmp_path), "--out", tmp_path / "out", "--name", "set", "--workers", "1") == 0
    assert same_files(prepared, tmp_path / "out/set")


@pytest.mark.long
def test_workers_do_not_change_the_set(prepared: Path, tmp_path: Path) -> None:
    words = [write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set"]
    assert run(*words, "--shard-megabytes", "0.001", "--workers", "2") == 0
    assert same_files(prepared, tmp_path / "out/set")


def test_interruptions_and_shards_do_not_change_the_set(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set", "--shard-megabytes", "0.001"]
    save = _ShardWriter._save

    def interrupted(self: _ShardWriter, number: int, arrays: dict[str, Any]) -> None:
        if number == 3:
            raise KeyboardInterrupt
        save(self, number, arrays)

    monkeypatch.setattr(_ShardWriter, "_save", interrupted)
    assert run(*words, "--workers", "1") == 130
    assert not (tmp_path / "out/set.bin").exists()
    monkeypatch.undo()
    assert run(*words, "--workers", "1") == 0
    assert "continuing: 3 of" in capsys.readouterr().out
    assert same_files(prepared, tmp_path / "out/set")
    assert run(*words) == 0
    assert "already prepared" in capsys.readouterr().out
    (tmp_path / "out/set.chat_template.jinja").write_text("other")
    assert run(*words, "--workers", "1") == 0
    assert same_files(prepared, tmp_path / "out/set")


def test_template_and_answers_are_part_of_the_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set"]
    assert run(*words) == 0
    assert run(*words, "--answers", "all", "--chat-template", "default") == 0
    assert "already prepared" in capsys.readouterr().out
    (tmp_path / "other.jinja").write_text(default_template() + "{# changed #}")
    for changed in (
        ["--answers", "last"],
        ["--chat-template", tmp_path / "other.jinja"],
        ["--chat-template-args", '{"date": "today"}'],
    ):
        assert run(*words, *changed) == 2
        assert "set.bin exists and was made by another command" in capsys.readouterr().err
    assert run(*words, "--overwrite", "--answers", "last") == 0
    assert sum(np.diff([False, *answers]).sum() for _, answers in stored(tmp_path / "out/set")) == len(ROWS) * 1
    (tmp_path / "text.txt").write_text("text")
    assert main(["prepare", str(tmp_path / "text.txt"), *map(str, words[1:]), "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("set.*")) == [
        "set.bin", "set.counts.npy", "set.idx", "set.manifest.json",
    ]  # fmt: skip


def test_validation_holds_out_whole_conversations(tmp_path: Path) -> None:
    assert run(write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set", "--validation", "0.3") == 0
    train, held_out = (stored(tmp_path / f"out/set-{name}") for name in ("train", "validation"))
    assert sorted(train + held_out) == sorted(expected(ROWS))
    assert min(len(train), len(held_out)) > 5


def test_each_answer_can_be_a_document(tmp_path: Path) -> None:
    assert run(write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set", "--answers", "each") == 0
    whole = iter(expected(ROWS))
    found = iter(stored(tmp_path / "out/set"))
    for ids, answers in whole:
        ends = [index for index, answer in enumerate(answers) if answer and ids[index] == 2]
        begins = [index for index, answer in enumerate(answers) if answer and not answers[index - 1]]
        for begin, end in zip(begins, ends, strict=True):
            learned = [begin <= index <= end for index in range(end + 1)]
            assert next(found) == (ids[: end + 1], learned)
    assert next(found, None) is None


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": 0}]}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (silent, ROWS[0], silent)))
    assert run(tmp_path / "in.jsonl", "--out", tmp_path / "out") == 0
    assert "1 conversations of at most" in (said := capsys.readouterr().out)
    assert "2 rows without an answer that is learned are left out" in said
    (tmp_path / "none.jsonl").write_text(json.dumps(silent))
    assert run(tmp_path / "none.jsonl", "--out", tmp_path / "none") == 2
    assert capsys.readouterr().err.strip() == "error: no conversation has an answer that is learned for train"
    assert list((tmp_path / "none").iterdir()) == []


def test_a_damaged_sidecar_is_refused(prepared: Path, tmp_path: Path) -> None:
    for path in prepared.parent.glob("set.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    answers = tmp_path / "set.answers.bin"
    content = answers.read_bytes()
    answers.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"are not the files that .*manifest\.json describes"):
        check_against_model(str(tmp_path / "set"), 260, 3, None)
    answers.unlink()
    with pytest.raises(UserError, match=r"set\.answers\.bin cannot be read"):
        check_against_model(str(tmp_path / "set"), 260, 3, None)


BAD: list[tuple[str, str, list[str], str]] = [
    ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', [], "a.jsonl, line 1: the conversation has no ass"),
    ("a.jsonl", '\n\n{"messages": 3}', [], "a.jsonl, line 3: 'messages' is a number, not a list of messages"),
    ("a.json", '[{"messages": [{"role": "x", "content": "a"}]}]', [], 'a.json, row 1: message 1 has the unknown rol'),
    ("a.json", '[{"messages": []}, ', [], "a.json, row 1: the conversation has no messages"),
    ("a.json", '[{"prompt": "a", "completion": "b"} {}]', [], "a.json, row 2: not JSON (',' of a list is missing)"),
    ("a.json", '[{"prompt": "a", "completion": "b"}, {', [], "a.json, row 2: not JSON ("),
    ("a.txt", "text", [], "a.txt is text: conversations are read from JSONL, Parquet and datasets"),
    ("a.jsonl", "{}", ["--chat-template", "absent"], "--chat-template absent: No such file or directory"),
    ("a.jsonl", "{}", ["--chat-template-args", "[]"], "--chat-template-args: must be a JSON object, not list"),
    ("a.jsonl", "{}", ["--no-end-of-document"], "--no-end-of-document is for texts: a chat template writes"),
    ("a.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', ["--chat-template", "bad.jinja"],
     "bad.jinja, line 2: is no chat template: "),
    ("a.jsonl", '\n{"messages": [{"role": "assistant", "content": "a"}]}', ["--chat-template", "fails.jinja"],
     "a.jsonl, line 2: the chat template refuses the conversation: only users"),
]  # fmt: skip


def test_tables_and_folders_need_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet.write_table(pyarrow.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    assert run(tmp_path / "a.parquet", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.strip().endswith("a.parquet has no conversations in text, id")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b.txt").write_text("text")
    write_jsonl(tmp_path / "folder")
    assert run(tmp_path / "folder", "--out", tmp_path / "out") == 2
    assert (
        "b.txt is text: conversations are read from JSONL, Parquet and datasets, or leave it" in capsys.readouterr().err
    )
    assert run(tmp_path / "folder", "--out", tmp_path / "out", "--glob", "*.jsonl", "--workers", "1") == 0


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, content: str, options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    Path("bad.jinja").write_text("\n{% for %}")
    Path("fails.jinja").write_text("{{ raise_exception('only users') }}")
    assert run(name, "--out", "out", *options) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {message}")
    assert "\n" not in said
    assert not list(Path().glob("out/[!.]*"))


def test_a_tokenizer_needs_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, tokenizer = write_jsonl(tmp_path), str(tmp_path / "tokenizer")
    save_tokenizer(bytes_tokenizer(), tokenizer)
    words = [source, "--out", tmp_path / "out", "--name", "set", "--tokenizer", tokenizer]
    assert run(*words) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: the tokenizer in {tokenizer} has no chat template: give --chat-template FILE, or --chat-template "
        "default"
    )
    assert run(*words, "--chat-template", "default") == 0
    assert stored(tmp_path / "out/set") == expected(ROWS)
    assert load_tokenizer(tokenizer).chat_template is None
    several = templates.hugging_face(bytes_tokenizer())
    several.chat_template = {"default": "a", "tool_use": "b"}
    several.save_pretrained(tmp_path / "several")
    assert run(*words[:-1], tmp_path / "several", "--overwrite") == 2
    assert "has several chat templates (default, tool_use): write the one to use to a file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--answers=last", "--chat-format=alpaca", "--leave-out-bad-rows"])
def test_options_of_conversations_need_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert main(["prepare", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), option]) == 2
    assert capsys.readouterr().err.strip() == f"error: {option.split('=')[0]} is for conversations: give --chat as well"


def test_a_bpe_is_trained_on_what_is_said(tmp_path: Path) -> None:
    assert run(write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set", "--tokenizer", "train-bpe:280") == 0
    tokenizer = load_tokenizer(str(tmp_path / "out/tokenizer"))
    vocabulary = tokenizer.get_vocab()
    assert "answer" in vocabulary or "Ġanswer" in vocabulary
    assert not any("role" in token or "content" in token for token in vocabulary)
    assert tokenizer.decode(stored(tmp_path / "out/set")[0][0]).startswith("S<s>é 0</s>U<s>question 0 0</s>A<s>")


def test_bad_rows_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad: list[Any] = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "critic", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "refused", "completion": "b"},
        {"text": "a"},
        [],
    ]
    (tmp_path / "refusing.jinja").write_text(
        "{% if messages[0].content == 'refused' %}{{ raise_exception('no') }}{% endif %}" + default_template()
    )
    rows = [bad[0], *ROWS[:3], *bad[1:3], *ROWS[3:5], *bad[3:]]
    for name, written in (("mixed", rows), ("good", ROWS[:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in written))
    words = ["--out", tmp_path / "out", "--workers", "1", "--chat-template", tmp_path / "refusing.jinja"]
    assert run(tmp_path / "good.jsonl", *words) == 0
    assert run(tmp_path / "mixed.jsonl", *words) == 2
    assert "mixed.jsonl, line 1: the conversation has no assistant turn" in capsys.readouterr().err
    assert run(tmp_path / "mixed.jsonl", *words, "--leave-out-bad-rows") == 0
    assert "; 5 bad rows are left out" in capsys.readouterr().out
    assert same_files(tmp_path / "out/good", tmp_path / "out/mixed")
    (tmp_path / "bad.jsonl").write_text(json.dumps(bad[0]))
    assert run(tmp_path / "bad.jsonl", *words, "--leave-out-bad-rows") == 2
    assert "no conversation has an answer that is learned for train" in capsys.readouterr().err
