"""The files of a folder that a pattern selects. Links are followed; every real folder and file is read once."""

from __future__ import annotations

import fnmatch
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from nld_train.errors import UserError

_ANY_FOLDERS = "**"
_SHOWN_LINKS = 5


@dataclass(frozen=True)
class _Visit:
    """A folder that is to be listed: its path, its name relative to the source, and what is left of the pattern."""

    path: str
    name: str
    pattern: tuple[str, ...]


@dataclass
class FolderFiles:
    """The files of a folder, and the links that are not read.

    Attributes:
        files: paths by their names relative to the folder, with `/`, sorted.
        loops: links to a folder that contains them.
        repeated: links to files or folders that are read under another name.
        broken: links to nothing.
    """

    files: dict[str, str] = field(default_factory=dict)
    loops: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def notes(self, folder: str) -> Iterator[str]:
        """One line for each kind of link that is not read."""
        kinds = {
            "to a folder that contains it": self.loops,
            "to what is read under another name": self.repeated,
            "to nothing": self.broken,
        }
        for kind, links in kinds.items():
            if links:
                named = ", ".join([*islice(links, _SHOWN_LINKS), *(["..."] if len(links) > _SHOWN_LINKS else [])])
                yield f"{folder}: left out {len(links)} {'link' if len(links) == 1 else 'links'} {kind}: {named}"


def files_of(folder: str, pattern: str) -> FolderFiles:
    """The files below a folder that match a pattern of `glob`, `**` for any folders included; hidden ones only where
    the pattern names them.

    What lies in the folder itself is found before what links lead to, so a document has the name of its real file.

    Raises:
        UserError: the pattern leads out of the folder.
        OSError: a folder cannot be listed.
    """
    parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
    if pattern.startswith("/") or ".." in parts:
        raise UserError(f"--glob {pattern!r} must stay inside of the folder: give the other folder as a source")
    walk = _Walk(folder)
    walk.run(_Visit(folder, "", parts))
    return walk.found


class _Walk:
    """Lists folders, those behind links last."""

    def __init__(self, folder: str) -> None:
        self._root = os.path.realpath(folder)
        self.found = FolderFiles()
        self._listed: set[tuple[str, tuple[str, ...]]] = set()
        self._folders: deque[_Visit] = deque()
        self._links: deque[_Visit] = deque()
        self._linked_files: dict[str, str] = {}

    def run(self, first: _Visit) -> None:
        """Fills `found`."""
        self._folders.append(first)
        while self._folders or self._links:
            if self._folders:
                self._list(self._folders.popleft())
            else:
                self._follow(self._links.popleft())
        self._add_linked_files()
        found = self.found
        found.files = dict(sorted(found.files.items()))
        for links in (found.loops, found.repeated, found.broken):
            links[:] = sorted(set(links))

    def _list(self, visit: _Visit) -> None:
        real = os.path.realpath(visit.path)
        if (real, visit.pattern) in self._listed:
            return
        self._listed.add((real, visit.pattern))
        first, *rest = visit.pattern or ("",)
        with os.scandir(visit.path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if first == _ANY_FOLDERS:
                    self._any_folders(visit, entry, tuple(rest))
                elif _matches(entry.name, first):
                    self._take(visit, entry, tuple(rest))

    def _any_folders(self, visit: _Visit, entry: os.DirEntry[str], rest: tuple[str, ...]) -> None:
        """`**` stands for no folder, or for this one and more."""
        while rest[:1] == (_ANY_FOLDERS,):
            rest = rest[1:]
        if not rest:  # at the end of a pattern it stands for everything
            rest = ("*",)
        if not entry.name.startswith("."):
            self._descend(visit, entry, (_ANY_FOLDERS, *rest))
        if _matches(entry.name, rest[0]):
            self._take(visit, entry, rest[1:])

    def _take(self, visit: _Visit, entry: os.DirEntry[str], rest: tuple[str, ...]) -> None:
        if rest:
            self._descend(visit, entry, rest)
        elif entry.is_symlink():
            name = _join(visit.name, entry.name)
            if not os.path.exists(entry.path):
                self.found.broken.append(name)
            elif os.path.isfile(entry.path):
                self._linked_files[name] = entry.path
        elif entry.is_file():
            self.found.files[_join(visit.name, entry.name)] = entry.path

    def _descend(self, visit: _Visit, entry: os.DirEntry[str], pattern: tuple[str, ...]) -> None:
        if os.path.isdir(entry.path):
            queue = self._links if entry.is_symlink() else self._folders
            queue.append(_Visit(entry.path, _join(visit.name, entry.name), pattern))

    def _follow(self, link: _Visit) -> None:
        real = os.path.realpath(link.path)
        inside = (self._root, os.path.realpath(os.path.dirname(link.path)))
        if any(os.path.commonpath([real, folder]) == real for folder in inside):
            self.found.loops.append(link.name)
        elif (real, link.pattern) in self._listed:
            self.found.repeated.append(link.name)
        else:
            self._folders.append(link)

    def _add_linked_files(self) -> None:
        real_paths = {os.path.realpath(path) for path in self.found.files.values()} if self._linked_files else set()
        for name, path in sorted(self._linked_files.items()):
            real = os.path.realpath(path)
            if real in real_paths:
                self.found.repeated.append(name)
            else:
                real_paths.add(real)
                self.found.files[name] = path


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
