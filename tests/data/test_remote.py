"""Sources on web servers and in other stores of fsspec: the same pieces as local files, downloaded once."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from source_texts import source_texts

from nld_train.commands.data import main
from nld_train.data.sources import SourceSettings
from nld_train.errors import UserError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts what is downloaded."""

    downloads: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.downloads.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An address, and the folder whose files have it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.downloads = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


def texts(source: str) -> list[str]:
    return source_texts(source, SourceSettings())


def write_lines(path: Path, *words: str) -> None:
    path.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))


def test_a_file_is_downloaded_once_and_again_when_it_changes(served: tuple[str, Path]) -> None:
    address, folder = served
    write_lines(folder / "words.jsonl", "one", "two")
    assert texts(f"{address}/words.jsonl") == texts(str(folder / "words.jsonl")) == ["one", "two"]
    assert texts(f"{address}/words.jsonl") == ["one", "two"]
    assert Handler.downloads == ["/words.jsonl"]
    write_lines(folder / "words.jsonl", "three")
    assert texts(f"{address}/words.jsonl") == ["three"]


def test_a_set_of_an_address_is_that_of_the_file(
    served: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = served
    write_lines(folder / "words.jsonl", *map(str, range(300)))
    for name, source in (("here", str(folder / "words.jsonl")), ("there", f"{address}/words.jsonl")):
        assert main(["prepare", source, "--out", str(tmp_path / name)]) == 0
    assert f"downloading {address}/words.jsonl to " in capsys.readouterr().out
    for file in ("words.bin", "words.idx"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    assert json.loads((tmp_path / "there" / "words.manifest.json").read_text())["sources"] == [f"{address}/words.jsonl"]


def test_several_files_by_a_pattern(served: tuple[str, Path]) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for number in (2, 1):
        store.pipe(f"/words/part-{number}.jsonl", json.dumps({"text": str(number)}).encode())
    assert texts("memory://words/*.jsonl") == ["1", "2"]
    with pytest.raises(UserError, match=r"memory://words/\*\.parquet: no file has such a name"):
        texts("memory://words/*.parquet")


def test_a_pattern_names_no_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "memory://words/*.jsonl", "--out", str(tmp_path)]) == 2
    assert "--name: the set needs one, since memory://words/*.jsonl names several files" in capsys.readouterr().err


def test_what_cannot_be_read(served: tuple[str, Path]) -> None:
    address, folder = served
    (folder / "pages.pdf").write_bytes(b"%PDF")
    for source, message in (
        (f"{address}/absent.jsonl", rf"{address}/absent\.jsonl: cannot be read: .*absent"),
        ("nosuch://words.jsonl", "nosuch://words.jsonl: cannot be read: .*nosuch"),
        (f"{address}/pages.pdf", r"\.pdf files are not read"),
    ):
        with pytest.raises(UserError, match=message):
            texts(source)
    assert not list(folder.parent.glob("cache/**/*.partial"))
