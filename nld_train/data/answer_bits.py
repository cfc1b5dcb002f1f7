"""Bits of the tokens of a chat set: `PREFIX.answers.bin` and `PREFIX.turns.bin`, one for each token of `PREFIX.bin`.

Bit `i % 8` of byte `i // 8` (`np.packbits` with `bitorder="little"`) is that of token i in the stream of all documents.
Of answers, a maximal run of ones within a document is one answer, its end-of-turn token included; what the generation
prompt supplies is no part of it. Of turns, a one is the first token of a turn of the user, before which a conversation
that is too long can be cut; what lies before the first of them, the system prompt, always stays. The last bits of a
file are zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nld_train.errors import UserError

ANSWERS, TURNS = ".answers.bin", ".turns.bin"


class AnswerBits:
    """The bits of a set, read from a memory map.

    Args:
        prefix: path of the set without suffix.
        tokens: in the `.bin`.
        suffix: of the file.

    Raises:
        UserError: the file is missing, or is not that of so many tokens.
    """

    def __init__(self, prefix: str, tokens: int, suffix: str = ANSWERS) -> None:
        check_answer_bits(prefix, tokens, suffix)
        self._bits = np.memmap(prefix + suffix, dtype=np.uint8, mode="r") if tokens else np.empty(0, np.uint8)

    def read(self, begin: int, length: int) -> NDArray[np.bool_]:
        """The bits of some tokens, bool `[length]`; `begin` is the number of the first of them."""
        skipped = begin % 8
        raw = np.asarray(self._bits[begin // 8 : (begin + length + 7) // 8])
        return np.unpackbits(raw, count=skipped + length, bitorder="little")[skipped:].astype(bool)


def check_answer_bits(prefix: str, tokens: int, suffix: str = ANSWERS) -> None:
    """Refuses a chat set without its bits.

    Raises:
        UserError: the file is missing, or is not that of so many tokens.
    """
    path = prefix + suffix
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the set again") from error
    if size != -(-tokens // 8):
        raise UserError(
            f"{path} is damaged: it has {size} bytes, and {prefix}.bin with {tokens} tokens requires "
            f"{-(-tokens // 8)}; prepare the set again"
        )


def write_answer_bits(prefix: str, parts: Iterable[NDArray[np.bool_]], suffix: str = ANSWERS) -> None:
    """Writes the bits of a set, in memory that does not grow with the set.

    Args:
        prefix: path of the set without suffix.
        parts: the bits of consecutive tokens, bool `[tokens]`.
        suffix: of the file.
    """
    rest = np.zeros(0, dtype=bool)
    with open(prefix + suffix, "wb") as stream:
        for part in parts:
            bits = np.concatenate([rest, part])
            whole = len(bits) // 8 * 8
            stream.write(np.packbits(bits[:whole], bitorder="little").tobytes())
            rest = bits[whole:]
        stream.write(np.packbits(rest, bitorder="little").tobytes())
