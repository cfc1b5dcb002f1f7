"""Which tokens of a chat set belong to answers: `PREFIX.answers.bin`, one bit for each token of `PREFIX.bin`.

Bit `i % 8` of byte `i // 8` (`np.packbits` with `bitorder="little"`) is that of token i in the stream of all documents.
A maximal run of ones within a document is one answer, its end-of-turn token included; what the generation prompt
supplies is no part of it. The last bits of the file are zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nld_train.errors import UserError

ANSWERS = ".answers.bin"


class AnswerBits:
    """The bits of a set, read from a memory map.

    Args:
        prefix: path of the set without suffix.
        tokens: in the `.bin`.

    Raises:
        UserError: the file is missing, or is not that of so many tokens.
    """

    def __init__(self, prefix: str, tokens: int) -> None:
        check_answer_bits(prefix, tokens)
        self._bits = np.memmap(prefix + ANSWERS, dtype=np.uint8, mode="r")

    def read(self, begin: int, length: int) -> NDArray[np.bool_]:
        """Whether each of some tokens belongs to an answer, `[length]`; `begin` is the number of the first of them."""
        skipped = begin % 8
        raw = np.asarray(self._bits[begin // 8 : (begin + length + 7) // 8])
        return np.unpackbits(raw, count=skipped + length, bitorder="little")[skipped:].astype(bool)


def check_answer_bits(prefix: str, tokens: int) -> None:
    """Refuses a chat set without its bits.

    Raises:
        UserError: the file is missing, or is not that of so many tokens.
    """
    path = prefix + ANSWERS
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the set again") from error
    if size != -(-tokens // 8):
        raise UserError(
            f"{path} is damaged: it has {size} bytes, and {prefix}.bin with {tokens} tokens requires "
            f"{-(-tokens // 8)}; prepare the set again"
        )


def write_answer_bits(prefix: str, parts: Iterable[NDArray[np.bool_]]) -> None:
    """Writes the bits of a set, in memory that does not grow with the set.

    Args:
        prefix: path of the set without suffix.
        parts: the bits of consecutive tokens, bool `[tokens]`.
    """
    rest = np.zeros(0, dtype=bool)
    with open(prefix + ANSWERS, "wb") as stream:
        for part in parts:
            bits = np.concatenate([rest, part])
            whole = len(bits) // 8 * 8
            stream.write(np.packbits(bits[:whole], bitorder="little").tobytes())
            rest = bits[whole:]
        stream.write(np.packbits(rest, bitorder="little").tobytes())
