"""Whether a checkpoint is still what was written: a manifest of sizes and checksums, and its check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from nld_train.files import write_atomically

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22

# File name -> [size in bytes, checksum].
Checksums = dict[str, tuple[int, str]]


def checksums(files: Iterable[Path]) -> Checksums:
    """Size and BLAKE2 checksum of some files, by name."""
    return {file.name: (file.stat().st_size, _checksum(file)) for file in files}


def _checksum(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(directory: Path, known: Checksums) -> None:
    """Writes the manifest over every file of a checkpoint; `known` are checksums that need not be computed again."""
    others = [path for path in directory.iterdir() if path.is_file() and path.name not in known]
    files = {**known, **checksums(others)}
    write_atomically(directory / MANIFEST, json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


def find_damage(directory: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with a checkpoint, in a few words that name the file, or None.

    Args:
        directory: of the checkpoint.
        share: this process checks every `shares`-th file's checksum, beginning with this one; names and sizes of all
            files are checked by everyone.
        shares: number of processes among which the checksums are divided.
    """
    try:
        listed: Checksums = json.loads((directory / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the directory was not written to its end"
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, (size, _) in sorted(listed.items()):
        if not (directory / name).is_file():
            return f"{name} is missing"
        if (found := (directory / name).stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    for name, (_, checksum) in sorted(listed.items())[share::shares]:
        if _checksum(directory / name) != checksum:
            return f"{name} does not have the content that was written (checksum)"
    return None
