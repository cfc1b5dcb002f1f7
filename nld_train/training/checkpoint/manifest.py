"""Whether a checkpoint is still what was written: a manifest of sizes and checksums, and its check."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.outside_json import read_object
from nld_train.progress import Advance, progress_bar
from nld_train.training.checkpoint.paths import MODEL_FILE

MANIFEST = "manifest.json"
# Every checkpoint has these: the model's shapes, and Megatron's index of the tensors.
_REQUIRED = (MODEL_FILE, ".metadata")
_CHUNK_BYTES = 1 << 22

# File name -> [size in bytes, checksum]: BLAKE2, or where it begins with "crc32:", CRC-32.
Checksums = dict[str, tuple[int, str]]


def checksums(files: Iterable[Path]) -> Checksums:
    """Size and BLAKE2 checksum of some files, by name."""
    return {file.name: (file.stat().st_size, _checksum(file)) for file in files}


class Crc32:
    """CRC-32 with the methods of `hashlib`: finds damage as well, four times as fast. Its prefix marks it.

    With BLAKE2 a conversion would take 1.5 times as long.
    """

    PREFIX = "crc32:"

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        """Continues the checksum over more of the content."""
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        """The checksum as it is written in a manifest."""
        return f"{self.PREFIX}{self._value:08x}"


def _checksum(file: Path, like: str = "", advance: Advance = lambda _: None) -> str:
    """Checksum of a file, of the same kind as another checksum."""
    digest = Crc32() if like.startswith(Crc32.PREFIX) else hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def write_manifest(directory: Path, known: Checksums) -> None:
    """Writes the manifest over every file of a checkpoint; `known` are checksums that need not be computed again."""
    files = dict(known)
    for path in directory.rglob("*"):
        if path.is_file() and (name := path.relative_to(directory).as_posix()) not in {*known, MANIFEST}:
            files[name] = checksums([path])[path.name]
    write_atomically(directory / MANIFEST, json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


class ManifestError(Exception):
    """A manifest is missing or damaged; the message continues the name of its file."""


def read_manifest(directory: Path) -> Checksums:
    """The files of a checkpoint with their sizes and checksums, as the manifest lists them.

    Raises:
        ManifestError: there is no manifest, it cannot be read, or lists no checkpoint.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise ManifestError("is missing: the directory was not written to its end")
    try:
        listed = read_object(path)["files"]
        files = {name: (int(size), str(checksum)) for name, (size, checksum) in listed.items()}
    except UserError as error:
        raise ManifestError(f"cannot be read ({str(error).removeprefix(f'{path}: ')})") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ManifestError(f"cannot be read ({type(error).__name__}: {error})") from error
    for name in _REQUIRED:
        if name not in files:
            raise ManifestError(f"does not list {name}")
    return files


def find_damage(directory: Path, part: int = 0, parts: int = 1, size_only: str | None = None) -> str | None:
    """The damage of a checkpoint, in a few words that name the file, or None.

    Args:
        directory: of the checkpoint.
        part: this process compares the checksum of every `parts`-th file, beginning with this one; names and sizes of
            all files are compared by every process.
        parts: number of processes among which the checksums are divided; 0 to compare no checksums.
        size_only: ending of the names of files whose checksums are not compared.
    """
    try:
        listed = sorted(read_manifest(directory).items())
        for name, (size, _) in listed:
            if not (directory / name).is_file():
                return f"{name} is missing"
            if (found := (directory / name).stat().st_size) != size:
                return f"{name} has {found} bytes instead of {size}"
        read = {
            name: content
            for name, content in (listed[part::parts] if parts else ())
            if size_only is None or not name.endswith(size_only)
        }
        total, show = sum(size for size, _ in read.values()), part == 0 and bool(read)
        with progress_bar(f"check {directory.name}", total, in_bytes=True, shown=show, stays=False) as advance:
            for name, (_, checksum) in read.items():
                if _checksum(directory / name, checksum, advance) != checksum:
                    return f"{name} does not have the content that was written (checksum)"
    except ManifestError as error:
        return f"{MANIFEST} {error}"
    except FileNotFoundError as error:
        return f"{Path(error.filename or directory).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read ({error.strerror})"
    return None
