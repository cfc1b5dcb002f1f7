"""Folders with links: every real folder and file is read once, and what is left out is named."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest

from nld_train.commands.data import main
from nld_train.data.folders import files_of
from nld_train.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt", ".hidden.txt", ".git/e.txt"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "corpus"


def names(folder: Path, pattern: str = "**/*") -> list[str]:
    return list(files_of(str(folder), pattern).files)


def test_a_folder_that_links_to_itself_is_read_once(folder: Path) -> None:
    (folder / "loop").symlink_to(".")
    (folder / "sub/again").symlink_to("..")
    found = files_of(str(folder), "**/*")
    assert list(found.files) == ["a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt"]
    assert found.loops == ["loop", "sub/again"]


def test_links_to_folders_above_are_not_followed(folder: Path) -> None:
    (folder.parent / "other.txt").write_text("belongs to another corpus")
    (folder / "parent").symlink_to("..")
    (folder / "sub/root").symlink_to("/")
    found = files_of(str(folder), "**/*")
    assert list(found.files) == ["a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt"]
    assert found.loops == ["parent", "sub/root"]


def test_two_folders_that_link_to_each_other_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/f.txt").write_text("f")
    (tmp_path / "other/back").symlink_to(folder)
    (folder / "other").symlink_to(tmp_path / "other")
    found = files_of(str(folder), "**/*.txt")
    assert list(found.files) == ["a.txt", "other/f.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert found.loops == ["other/back"]


def test_a_folder_behind_two_links_is_read_under_one_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/f.txt").write_text("f")
    for name in ("first", "second"):
        (folder / name).symlink_to(tmp_path / "store")
    (folder / "alias").symlink_to("sub")
    found = files_of(str(folder), "**/*.txt")
    assert list(found.files) == ["a.txt", "first/f.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert found.repeated == ["alias", "second"]


def test_linked_files_are_read_once_and_broken_links_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("a file in a cache")
    for name, target in (
        ("0.txt", "a.txt"),
        ("x.txt", tmp_path / "blob"),
        ("y.txt", tmp_path / "blob"),
        ("gone.txt", "nowhere"),
        ("self.txt", "self.txt"),
    ):
        (folder / name).symlink_to(target)
    found = files_of(str(folder), "*.txt")
    assert list(found.files) == ["a.txt", "x.txt"]
    assert found.repeated == ["0.txt", "y.txt"]
    assert found.broken == ["gone.txt", "self.txt"]


PATTERNS = (
    "**/*",
    "**",
    "*",
    "*.txt",
    "**/*.txt",
    "sub/*",
    "sub/**",
    "*/*",
    "*/*/*.txt",
    ".*",
    ".git/*",
    "[ab].*",
    "./*",
)


@pytest.mark.parametrize("pattern", [*PATTERNS, "./*", "**/sub/**/*.txt", "**/**/*.txt", "sub/", "nothing"])
def test_patterns_select_what_glob_selects(folder: Path, pattern: str) -> None:
    paths = glob.glob(pattern, root_dir=folder, recursive=True)
    expected = {os.path.normpath(path) for path in paths if (folder / path).is_file()}
    assert names(folder, pattern) == sorted(expected)


@pytest.mark.parametrize("pattern", ["../*.txt", "/etc/*"])
def test_a_pattern_stays_inside_its_folder(folder: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="must stay inside of the folder"):
        files_of(str(folder), pattern)


def test_prepare_names_the_links_that_it_leaves_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "loop").symlink_to(".")
    (folder / "link.txt").symlink_to("a.txt")
    assert main(["prepare", str(folder), "--out", str(folder.parent / "out"), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "left out 1 link to a folder that contains it: loop" in shown
    assert "left out 1 link to what is read under another name: link.txt" in shown
    assert "out/corpus: 4 documents" in shown
