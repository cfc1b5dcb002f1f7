"""Which documents are held out for validation, and whether a fraction leaves any on both sides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from nld_train.data.readers import Document
from nld_train.errors import UserError

_RANGE = 2**64


def is_held_out(document: Document, fraction: float) -> bool:
    """Whether a document belongs to validation: a hash of its key below `fraction`, the same on every machine."""
    return _hash(document) < fraction * _RANGE


def _hash(document: Document) -> int:
    return int.from_bytes(hashlib.blake2b(document.key.encode(errors="replace"), digest_size=8).digest(), "little")


def check_split(documents: Iterable[Document], fraction: float) -> None:
    """Refuses sources without text, and a fraction that leaves one side without a document, before any is encoded.

    It stops at the first document of each side, so only a request that is refused reads everything.

    Args:
        documents: of all sources.
        fraction: that is held out, 0 for none.

    Raises:
        UserError: names a fraction that would do.
    """
    missing = {True, False} if fraction else {False}
    number, least, greatest = 0, _RANGE, 0
    for document in documents:
        missing.discard(is_held_out(document, fraction))
        if not missing:
            return
        position = _hash(document)
        number, least, greatest = number + 1, min(least, position), max(greatest, position)
    if not number:
        raise UserError("the sources hold no text")
    raise UserError(f"--validation {fraction:g}: {_reason(True in missing, number, least / _RANGE, greatest / _RANGE)}")


def _reason(nothing_held_out: bool, number: int, least: float, greatest: float) -> str:
    """Why one side of `number` documents is empty, from their least and greatest hash as fractions."""
    empty = f"no document is left for {'validation' if nothing_held_out else 'training'}"
    if least == greatest:
        held = "one document" if number == 1 else f"{number:,} equal documents"
        return f"{empty}, since the sources hold {held}: give more text, or --documents-per line or paragraph"
    bound = f"at least {_above(least):g}" if nothing_held_out else f"at most {_below(greatest):g}"
    return f"{empty} out of {number:,}: with these documents the fraction must be {bound}"


def _above(number: float) -> float:
    """A short number above `number`, at most a tenth larger."""
    scale = 10.0 ** (1 - math.floor(math.log10(max(number, 1e-18))))
    return min((math.floor(number * scale) + 1) / scale, (number + 1) / 2)


def _below(number: float) -> float:
    """As `_above`, below."""
    scale = 10.0 ** (1 - math.floor(math.log10(max(number, 1e-18))))
    return (math.ceil(number * scale) - 1) / scale
