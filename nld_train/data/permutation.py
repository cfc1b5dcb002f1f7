"""A keyed permutation of any number of elements, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

_ROUNDS = 8
_WORD = (1 << 64) - 1


def permute(index: int, size: int, keys: Sequence[int]) -> int:
    """Image of `index` under a permutation of `0..size-1` chosen by the round keys, in constant memory.

    A balanced Feistel network permutes the next even power of two; an image outside the range is permuted again
    until it falls inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), at most 4
    times on average.

    Args:
        index: `0 <= index < size`.
        size: number of elements, at least 1.
        keys: 64-bit round keys, from `round_keys`.
    """
    if size == 1:
        return 0
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half | right
        if index < size:
            return index


def _mix(word: int) -> int:
    """64-bit finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _WORD
    return word ^ word >> 31


@lru_cache(maxsize=256)
def round_keys(seed: int, fingerprint: str, epoch: int) -> tuple[int, ...]:
    """Round keys of one epoch of one set."""
    raw = hashlib.blake2b(f"{seed}/{fingerprint}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
