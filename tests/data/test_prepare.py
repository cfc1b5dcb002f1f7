"""`nld-data prepare`: every kind of source, the same bytes for any number of workers, atomic and resumable."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import processors

from nld_train.commands.data import main
from nld_train.data.manifest import read_manifest
from nld_train.data.packed import indexed_dataset_module
from nld_train.data.readers import Document
from nld_train.data.shards import is_held_out
from nld_train.data.text_ids import text_ids
from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer

TEXTS = [f"Document {i}: " + "some text <mask> </s> é漢\U0001f600 " * (i % 5 + 1) for i in range(40)]


def stored(prefix: str | Path) -> list[str]:
    """The documents of a set of bytes, read back with Megatron's own reader."""
    indexed = indexed_dataset_module().IndexedDataset(str(prefix))
    assert len(indexed.document_indices) == len(indexed) + 1
    documents = [indexed[index] for index in range(len(indexed))]
    assert all(document[-1] == 2 for document in documents)
    return [bytes((document[:-1] - 4).astype(np.uint8)).decode() for document in documents]


def first_document(prefix: Path) -> list[int]:
    indexed = indexed_dataset_module().IndexedDataset(str(prefix))  # unmaps its files when it goes
    ids: list[int] = indexed[0].tolist()
    return ids


def run(*arguments: str | Path) -> None:
    assert main(["prepare", *map(str, arguments)]) == 0


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def json_lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text, "other": 1}) + "\n" for text in texts).encode()


def write_jsonl(folder: Path) -> list[str]:
    path = folder / "in.jsonl"
    path.write_bytes(json_lines(TEXTS, "body"))
    return [str(path), "--text-key", "body"]


def write_gzip(folder: Path) -> list[str]:
    path = folder / "in.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(TEXTS)))
    return [str(path)]


def write_zstandard(folder: Path) -> list[str]:
    path = folder / "in.jsonl.zst"
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(json_lines(TEXTS))
    return [str(path)]


def write_lines(folder: Path) -> list[str]:
    path = folder / "in.txt"
    path.write_text("\n".join(TEXTS))
    return [str(path), "--documents-per", "line"]


def write_compressed_lines(folder: Path) -> list[str]:
    path = folder / "in.txt.bz2"
    path.write_bytes(bz2.compress("\n\n".join(TEXTS).encode()))
    return [str(path), "--documents-per", "line"]


def write_parquet(folder: Path) -> list[str]:
    path = folder / "in.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS, "other": range(len(TEXTS))}), path, row_group_size=7)
    return [str(path)]


def write_folder(folder: Path) -> list[str]:
    for number, text in enumerate(TEXTS):
        path = folder / "in" / f"part{number % 3}" / f"{number:03d}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "in" / "picture.png").write_bytes(b"\x89PNG\xff")
    return [str(folder / "in"), "--glob", "**/*.md"]


def write_saved_dataset(folder: Path) -> list[str]:
    import datasets

    datasets.Dataset.from_dict({"text": [*TEXTS, None, ""]}).save_to_disk(str(folder / "in"))
    return [str(folder / "in")]


def write_loadable_dataset(folder: Path) -> list[str]:
    (folder / "in").mkdir()
    parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "in" / "train-00000.parquet")
    return [str(folder / "in"), "--format", "dataset", "--split", "train"]


@pytest.mark.parametrize(
    "write",
    [
        write_jsonl,
        write_gzip,
        write_zstandard,
        write_lines,
        write_compressed_lines,
        write_parquet,
        write_folder,
        write_saved_dataset,
        write_loadable_dataset,
    ],
)
def test_every_kind_of_source_comes_back(
    tmp_path: Path, write: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    run(*write(tmp_path), "--out", tmp_path / "out", "--name", "set", "--workers", "1", "--shard-megabytes", "0.001")
    found = stored(tmp_path / "out" / "set")
    expected = [text.strip() for text in TEXTS]
    if write is write_folder:
        assert sorted(text.strip() for text in found) == sorted(expected)
    else:
        assert [text.strip() for text in found] == expected
    manifest = read_manifest(str(tmp_path / "out" / "set"))
    assert manifest is not None
    assert manifest.documents == len(TEXTS)
    assert manifest.tokens == sum(len(text.encode()) + 1 for text in found)
    assert manifest.dtype == "uint16"


def test_text_files_are_documents_or_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("one\ntwo\n\n\n  \nthree\n")
    run(tmp_path / "book.txt", "--out", tmp_path / "out")
    assert stored(tmp_path / "out" / "book") == ["one\ntwo\n\n\n  \nthree\n"]
    run(tmp_path / "book.txt", "--out", tmp_path / "out", "--name", "parts", "--documents-per", "paragraph")
    assert stored(tmp_path / "out" / "parts") == ["one\ntwo\n", "three\n"]


def test_documents_without_an_end_token(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    run(tmp_path / "a.txt", "--out", tmp_path, "--no-end-of-document")
    assert first_document(tmp_path / "a") == [101, 102, 103]


def test_documents_begin_as_prompts_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the tokens that the tokenizer's template puts before a text, and not with those that it puts after one."""
    tokenizer = bytes_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    save_tokenizer(tokenizer, str(tmp_path / "tokenizer"))
    (tmp_path / "a.txt").write_text("abc")
    words = (tmp_path / "a.txt", "--out", tmp_path, "--tokenizer", tmp_path / "tokenizer")
    run(*words)
    assert first_document(tmp_path / "a") == [1, 101, 102, 103, 2]
    manifest = read_manifest(f"{tmp_path}/a")
    assert manifest is not None
    assert (manifest.beginning_of_document, manifest.end_of_document, manifest.tokens) == ([1], 2, 5)
    prompt = text_ids(load_tokenizer(str(tmp_path / "tokenizer")), "abc")
    assert prompt == [1, 101, 102, 103]
    run(*words)
    assert "already prepared" in capsys.readouterr().out
    assert main(["prepare", *map(str, words), "--no-beginning-of-document"]) == 2
    run(*words, "--no-beginning-of-document", "--name", "bare")
    assert first_document(tmp_path / "bare") == [101, 102, 103, 2]


def test_a_set_of_an_earlier_version_begins_with_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    run(tmp_path / "a.txt", "--out", tmp_path)
    path = tmp_path / "a.manifest.json"
    record = json.loads(path.read_text())
    assert record.pop("beginning_of_document") == []
    path.write_text(json.dumps(record))
    manifest = read_manifest(f"{tmp_path}/a")
    assert manifest is not None
    assert manifest.beginning_of_document == []


@pytest.mark.parametrize("shard_megabytes", ["0.0005", "0.00123", "1"])
def test_byte_ranges_lose_and_repeat_no_line(tmp_path: Path, shard_megabytes: str) -> None:
    texts = ["a" * (i * 37 % 900 + 1) + str(i) for i in range(100)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    out = tmp_path / "out"
    run(
        tmp_path / "in.txt",
        "--out",
        out,
        "--documents-per",
        "line",
        "--shard-megabytes",
        shard_megabytes,
        "--workers",
        "1",
    )
    assert stored(out / "in") == texts


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source, *_ = write_jsonl(tmp_path)
    options = [
        "--text-key",
        "body",
        "--validation",
        "0.2",
        "--shard-megabytes",
        "0.002",
        "--tokenizer",
        "train-bpe:300",
    ]
    run(source, "--out", tmp_path / "one", "--workers", "1", *options)
    run(source, "--out", tmp_path / "three", "--workers", "3", *options)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")
    names = {"in-train", "in-validation"}
    suffixes = (".bin", ".idx", ".counts.npy", ".manifest.json")
    tokenizer = {f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
    assert set(digests(tmp_path / "one")) == {name + suffix for name in names for suffix in suffixes} | tokenizer


def test_validation_is_a_disjoint_share_by_content(tmp_path: Path) -> None:
    source, *_ = write_jsonl(tmp_path)
    run(source, "--out", tmp_path, "--text-key", "body", "--validation", "0.2", "--workers", "1")
    held_out = [text for text in TEXTS if is_held_out(Document(text, text), 0.2)]
    assert 2 <= len(held_out) <= 16
    assert stored(tmp_path / "in-validation") == held_out
    assert stored(tmp_path / "in-train") == [text for text in TEXTS if text not in held_out]


def test_the_same_command_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*write_jsonl(tmp_path), "--out", tmp_path / "out", "--name", "set"]
    run(*arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    run(*arguments)
    assert "already prepared" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "set.bin").write_bytes(b"cut off")  # a damaged set of ours is made anew
    run(*arguments)
    assert stored(tmp_path / "out" / "set") == TEXTS


def test_another_set_is_replaced_only_with_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.txt").write_text("first")
    run(tmp_path / "set.txt", "--out", tmp_path)
    before = digests(tmp_path)
    (tmp_path / "set.txt").write_text("second")
    assert main(["prepare", str(tmp_path / "set.txt"), "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert digests(tmp_path) == before | {"set.txt": hashlib.sha256(b"second").hexdigest()}
    run(tmp_path / "set.txt", "--out", tmp_path, "--overwrite")
    assert stored(tmp_path / "set") == ["second"]


def test_standard_library_is_split_by_file(tmp_path: Path) -> None:
    run("stdlib", "--out", tmp_path, "--workers", "1")
    train, validation = stored(tmp_path / "stdlib-train"), stored(tmp_path / "stdlib-validation")
    assert len(train) > 300
    assert 5 < len(validation) < len(train) / 5
    assert any("class ArgumentParser" in text for text in train + validation)
    assert not any("class AllTest(unittest.TestCase)" in text for text in train + validation)
    assert sum(map(len, train)) > 4e6


def test_a_killed_run_leaves_nothing_final_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{i} " + "killed and resumed again and again " * 350 for i in range(150)]
    (tmp_path / "in.jsonl").write_bytes(json_lines(texts))
    (tmp_path / "few.txt").write_text(texts[0])
    run(tmp_path / "few.txt", "--out", tmp_path / "bpe", "--tokenizer", "train-bpe:270")
    monkeypatch.chdir(tmp_path)
    arguments = ["prepare", "in.jsonl", "--tokenizer", "bpe/tokenizer", "--workers", "2", "--shard-megabytes", "0.05"]
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "nld_train.commands.data", *arguments, "--out", "out"])
    deadline = time.monotonic() + 60
    while len(list(out.glob(".in.work-*/shard-*.npz"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert [path for path in out.iterdir() if not path.name.startswith(".in.work-")] == []
    time.sleep(0.5)  # orphaned workers leave by themselves
    kept = {path: path.stat().st_mtime_ns for path in out.glob(".in.work-*/shard-*.npz")}
    time.sleep(0.5)
    assert kept == {path: path.stat().st_mtime_ns for path in out.glob(".in.work-*/shard-*.npz")}
    capsys.readouterr()
    assert main([*arguments, "--out", "out"]) == 0
    assert f"continuing: {len(kept)} of " in capsys.readouterr().out
    assert main([*arguments, "--out", "whole"]) == 0
    assert digests(out) == digests(tmp_path / "whole")
    assert list(out.glob(".*")) == []


def test_an_interrupt_is_one_line_and_status_130(tmp_path: Path) -> None:
    texts = [f"{i} " + "interrupted " * 3000 for i in range(2000)]
    (tmp_path / "in.jsonl").write_bytes(json_lines(texts))
    command = [sys.executable, "-m", "nld_train.commands.data", "prepare", "in.jsonl", "--out", "out", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--shard-megabytes", "0.02"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".in.work-*/shard-*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C: the workers get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines() == ["error: interrupted: the same command continues where this one stopped"]
    assert not list((tmp_path / "out").glob("in.*"))
