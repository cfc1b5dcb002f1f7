"""Where a conversation says that a picture is: a path, a data URL, base64, or bytes in a column."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from nld_train.data.pictures.decode import PictureLimits, decode_picture, refuse_large_file
from nld_train.data.records import kind_of
from nld_train.errors import UserError

_REMOTE = re.compile(r"^(https?|ftp|s3|gs|hf)://", re.IGNORECASE)
_SHOWN = 60

# Size in pixels after resizing, by that of the decoded picture: height and width, both.
Resize = Callable[[int, int, object], tuple[int, int]]


@dataclass(frozen=True)
class Reading:
    """How the pictures of a source are read.

    Attributes:
        folder: that relative paths start from.
        limits: of each picture.
        resize: gives the size of a picture after resizing, and refuses one that has none.
    """

    folder: str
    limits: PictureLimits
    resize: Resize


@dataclass(frozen=True)
class Picture:
    """A picture as it came.

    Attributes:
        data: its encoded bytes.
        height: in pixels, after resizing.
        width: the same.
    """

    data: bytes
    height: int
    width: int

    @cached_property
    def digest(self) -> bytes:
        """Identity of its bytes: 16 bytes."""
        return hashlib.blake2b(self.data, digest_size=16).digest()


def read_picture(reference: Any, reading: Reading, where: object) -> Picture:
    """Reads a picture and decodes it once, so that a broken one is found here and not in training.

    Args:
        reference: a path, `file:` or `data:` URL; bytes; or an object with `bytes` or `path`, as columns of `datasets`
            have it.
        reading: folder, limits and resizing.
        where: file, row and message, for messages of errors.

    Raises:
        UserError: there is no such file, the picture is elsewhere on the network, or it is refused by its limits.
    """
    data, where = _data(reference, reading, where)
    image = decode_picture(data, reading.limits, where)
    return Picture(data, *reading.resize(image.height, image.width, where))


def _data(reference: Any, reading: Reading, where: object) -> tuple[bytes, object]:
    """The encoded bytes, and a name for messages."""
    if isinstance(reference, dict):
        if isinstance(reference.get("bytes"), bytes):
            return reference["bytes"], where
        reference = reference.get("path")
    if isinstance(reference, bytes):
        return reference, where
    if not isinstance(reference, str) or not reference:
        raise UserError(f"{where}: a picture is {kind_of(reference)}, not a path, a data URL or the bytes of a file")
    if reference.startswith("data:"):
        return _of_data_url(reference, reading.limits, where), where
    if _REMOTE.match(reference):
        raise UserError(
            f"{where}: the picture {reference[:_SHOWN]!r} is elsewhere on the network: download it first, and give "
            "its path"
        )
    return _of_file(reference, reading, where)


def _of_data_url(url: str, limits: PictureLimits, where: object) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError(f"{where}: the data URL of a picture has no comma, after which its bytes would be")
    # Four characters of base64 are three bytes: refused before they are decoded.
    refuse_large_file(len(body) * 3 // 4 or 1, limits, where)
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    return of_base64(body, where)


def of_base64(text: str, where: object) -> bytes:
    """The bytes of a base64 text.

    Raises:
        UserError: it is none.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: the base64 of a picture is broken: {error}") from error


def _of_file(reference: str, reading: Reading, where: object) -> tuple[bytes, object]:
    path = unquote(reference.removeprefix("file://")) if reference.startswith("file://") else reference
    path = os.path.join(reading.folder, path)
    named = f"{where}: {path}"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a device or a pipe may never end
            raise UserError(f"{named}: is no regular file")
        refuse_large_file(status.st_size, reading.limits, named)
        return Path(path).read_bytes(), named
    except (OSError, ValueError) as error:  # the latter: a null byte in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{where}: the picture {path[:200]!r} cannot be read: {reason}") from error
