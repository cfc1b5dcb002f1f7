"""Files of object stores and web servers as local ones, by fsspec: downloaded once, and again when they change."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nld_train.errors import UserError, first_line

_FOLDER = "nld_sources"


def is_remote(source: str) -> bool:
    """Whether a source is an address such as `s3://bucket/data/*.jsonl`, and no path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def local_copies(address: str, note: Callable[[str], None] = lambda line: None) -> list[tuple[str, str]]:
    """The files of an address, downloaded into the cache of Hugging Face's libraries (`HF_HOME`).

    A file whose size, time and checksum are those of a copy, as far as the store tells them, is not downloaded again; a
    download that was interrupted begins again.

    Args:
        address: of a file, or with `*`, `?` or `[..]` of several, for a store that can list its files.
        note: is called with one line about each file that is downloaded.

    Returns:
        Of each file, in the order of their names, the path of its copy, and its name.

    Raises:
        UserError: the protocol needs a package that is not installed, or the store refuses, or has no such file.
    """
    import fsspec
    from fsspec.core import has_magic

    try:
        store, path = fsspec.url_to_fs(address)
        names = sorted(store.glob(path)) if has_magic(path) else [path]
        copies = [_copy(store, name, note) for name in names]
    except Exception as error:  # every store raises its own
        raise UserError(f"{address}: cannot be read: {first_line(error)}") from error
    if not copies:
        raise UserError(f"{address}: no file has such a name")
    return copies


def _copy(store: Any, name: str, note: Callable[[str], None]) -> tuple[str, str]:
    """The path of a file's copy, made if there is none, and the file's name."""
    from huggingface_hub.constants import HF_HOME

    address, file = store.unstrip_protocol(name), name.rpartition("/")[2]
    # The address of a redirection may be signed anew each time.
    known = sorted((key, str(value)) for key, value in store.info(name).items() if key != "url")
    version = hashlib.sha256(repr((address, known)).encode()).hexdigest()[:16]
    path = os.path.join(HF_HOME, _FOLDER, version, file)
    if not os.path.exists(path):
        note(f"downloading {address} to {path}")
        _download(store, name, path)
    return path, file


def _download(store: Any, name: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # A name of its own: several commands may download the same file at once.
    partial = f"{path}.{os.getpid()}.partial"
    try:
        store.get_file(name, partial)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
