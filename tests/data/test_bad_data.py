"""Bad input to `nld-data` gets one line on standard error and exit status 2, and leaves nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from token_documents import random_documents

from nld_train.commands.data import main
from nld_train.data.manifest import check_against_model
from nld_train.data.tokenizer import save_tokenizer, train_bpe
from nld_train.errors import UserError


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Runs a command that must fail; returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


BAD_INPUTS: list[tuple[str, bytes, list[str], str]] = [
    ("a.jsonl", b'{"text": "fine"}\n{"text": \n', [], r"line 2: not JSON"),
    ("a.jsonl", b'{"body": "x"}\n', [], r"no key 'text' (body): give --text-key"),
    ("a.jsonl", b'{"text": 3}\n', [], r"'text' is a number, not text"),
    ("a.jsonl", b"[1]\n", [], r"holds a list, not an object with a text under 'text'"),
    ("a.txt", b"fine \xff\xfe", [], r"not UTF-8 at byte 5: give --encoding-errors"),
    ("a.txt", b"", [], r"the sources hold no text"),
    ("a.txt", b"x", ["--validation", "0.0001"], r"no document is left for validation"),
    ("a.txt", b"x", ["--validation", "1.5"], r"--validation 1.5 must be a fraction in"),
    ("a.txt", b"x", ["--tokenizer", "nowhere"], r"no tokenizer directory nowhere"),
    ("a.txt", b"x", ["--tokenizer", "train-bpe:many"], r"VOCAB must be a whole number"),
    ("a.txt", b"x", ["--tokenizer", "train-bpe:20"], r"too small"),
    ("a.txt", b"x", ["--name", "b/c"], r"must be a plain file name"),
    ("a.txt", b"x", ["--workers", "0"], r"--workers at least 1"),
    ("a.parquet", b"no parquet", [], r"is no Parquet file"),
    ("a.txt.gz", b"not compressed", [], r"a.txt.gz cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD_INPUTS)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, options: list[str], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(capsys, "prepare", tmp_path / name, "--out", tmp_path / "out", *options)
    assert not list((tmp_path / "out").glob("a.*"))
    assert not list((tmp_path / "out").glob("a-*"))
    if "holds no text" in message or "no document is left" in message:
        assert not list((tmp_path / "out").glob(".*"))


def test_bad_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    out = ["--out", tmp_path / "out"]
    assert "no such source" in refused(capsys, "prepare", tmp_path / "nowhere", *out)
    assert "holds no files to read" in refused(capsys, "prepare", tmp_path / "empty", *out)
    assert "cannot open" in refused(capsys, "prepare", tmp_path / "empty", "--format", "dataset", *out)
    assert "a.txt" in refused(capsys, "prepare", tmp_path / "a.txt", "--out", tmp_path / "a.txt" / "out")
    assert not (tmp_path / "out").exists()


def test_a_bad_document_stops_the_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_bytes(b"\xff" if number == 7 else b"text")
    options = ["--out", tmp_path / "out", "--workers", "2", "--shard-megabytes", "0.000001", "--name", "set"]
    assert "7.txt is not UTF-8" in refused(capsys, "prepare", tmp_path, *options, "--glob", "*.txt")
    assert not list((tmp_path / "out").glob("set*"))


def test_the_command_itself_prints_one_line_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nld_train.commands.data", "inspect", str(tmp_path / "nothing")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "nothing.bin does not exist" in result.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes fresh copies of a small prepared set of bytes."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "set.txt").write_text("text that spells <mask> and </s> " * 40)
    assert main(["prepare", str(folder / "set.txt"), "--out", str(folder)]) == 0

    def copy() -> Path:
        fresh = tmp_path_factory.mktemp("copy")
        for path in folder.glob("set.*"):
            (fresh / path.name).write_bytes(path.read_bytes())
        (fresh / "tokenizer").symlink_to(folder / "tokenizer")
        return fresh / "set"

    return copy


def against(prefix: Path, vocab_size: int = 260, mask_token_id: int = 3, tokenizer: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_against_model(str(prefix), vocab_size, mask_token_id, tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_set_is_checked_against_the_model(prepared: Callable[[], Path], tmp_path: Path) -> None:
    prefix = prepared()
    check_against_model(str(prefix), 260, 3, str(prefix.parent / "tokenizer"))
    check_against_model(str(prefix), 512, 0, None)
    assert "model.vocab_size must be at least 260" in against(prefix, vocab_size=259)
    assert "mask token 101 occurs" not in against(prefix, mask_token_id=ord("t") + 4)
    assert f"the mask token {ord('t') + 4} occurs" in against(prefix, mask_token_id=ord("t") + 4)
    assert "the mask token 2 occurs 1 times" in against(prefix, mask_token_id=2)
    save_tokenizer(train_bpe(["other"], 260), str(tmp_path / "other"))
    assert "prepared with another tokenizer" in against(prefix, tokenizer=str(tmp_path / "other"))
    assert "no tokenizer directory" in against(prefix, tokenizer=str(tmp_path / "nowhere"))


def test_a_changed_or_damaged_set_is_refused(prepared: Callable[[], Path]) -> None:
    prefix = prepared()
    content = bytearray(prefix.with_suffix(".bin").read_bytes())
    content[11] ^= 1
    prefix.with_suffix(".bin").write_bytes(content)
    assert "are not the files that" in against(prefix)
    prefix = prepared()
    prefix.with_suffix(".bin").write_bytes(content[:50])
    assert "is truncated" in against(prefix)
    prefix = prepared()
    prefix.with_name("set.manifest.json").write_text("{")
    assert "set.manifest.json is damaged" in against(prefix)
    prefix = prepared()
    prefix.with_name("set.counts.npy").unlink()
    assert "set.counts.npy cannot be read" in against(prefix)


def test_a_set_of_other_tools_passes_without_a_manifest(tmp_path: Path, write_set: Callable[..., str]) -> None:
    check_against_model(write_set(tmp_path / "set", random_documents(1, 30), np.int32), 100, 3, None)


def test_inspect_shows_set_and_sample(prepared: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    prefix = prepared()
    assert main(["inspect", str(prefix)]) == 0
    shown = capsys.readouterr().out
    assert "documents" in shown
    assert "1,321" in shown
    assert "tokenizer_hash" in shown
    sample = ["inspect", str(prefix), "--sample", "1", "--sequence-length", "64", "--block-size", "8"]
    assert main([*sample, "--level", "0.5", "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "sample 1 of 20" in shown
    assert "document 0: 64 tokens" in shown
    assert "⟦" in shown
    assert main([*sample, "--level", "1"]) == 0
    assert "64 of the tokens and 0 end tokens as fill after documents; 64 tokens and 0 of the fill masked" in (
        capsys.readouterr().out
    )


def test_inspect_refuses_what_is_not_there(prepared: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    prefix = prepared()
    assert "holds samples 0 to" in refused(capsys, "inspect", prefix, "--sample", "9", "--sequence-length", "600")
    assert "must lie in [0, 1]" in refused(capsys, "inspect", prefix, "--sample", "0", "--level", "2")
    assert "fewer than one sample" in refused(capsys, "inspect", prefix, "--sample", "0", "--sequence-length", "99999")
    prefix.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0")
    assert "set.idx is not an index" in refused(capsys, "inspect", prefix)


def test_a_failed_request_leaves_no_tokenizer_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The BPE of the bad input is another one than that of the mended input."""
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    arguments = ("prepare", source, "--out", out, "--tokenizer", "train-bpe:270", "--workers", "1")
    source.write_text('{"text": "one and one and one"}\n{"text": \n')
    refused(capsys, *arguments)
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    source.write_text('{"text": "one and one and one"}\n{"text": "two two two two"}\n')
    assert main([str(argument) for argument in arguments]) == 0
    check_against_model(str(out / "a"), 300, 3, str(out / "tokenizer"))


def test_another_tokenizer_is_replaced_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "out"
    source.write_text("one and one and one")
    arguments = ("prepare", source, "--out", out, "--workers", "1")
    save_tokenizer(train_bpe(["two two two"], 262), str(out / "tokenizer"))
    before = (out / "tokenizer/tokenizer.json").read_bytes()
    assert "holds another tokenizer: give another --out, or --overwrite" in refused(capsys, *arguments)
    assert (out / "tokenizer/tokenizer.json").read_bytes() == before
    assert not (out / "a.bin").exists()
    assert main([str(argument) for argument in (*arguments, "--overwrite")]) == 0
    check_against_model(str(out / "a"), 260, 3, str(out / "tokenizer"))
    assert {path.name for path in out.iterdir()} == {"tokenizer", "a.bin", "a.idx", "a.counts.npy", "a.manifest.json"}


def test_what_is_no_tokenizer_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "out/tokenizer").mkdir(parents=True)
    (tmp_path / "out/tokenizer/notes").write_text("mine")
    message = refused(capsys, "prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--overwrite")
    assert "holds no tokenizer" in message
    assert (tmp_path / "out/tokenizer/notes").read_text() == "mine"
