"""A keyed permutation of any number of elements, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
    half = _half_bits(size)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half | right
        if index < size:
            return index


def permute_many(indices: NDArray[np.int64], size: int, keys: Sequence[int]) -> NDArray[np.int64]:
    """`permute` of each of the indices, int64 `[n]`, some hundred times as fast."""
    images = indices.astype(np.uint64)
    half = np.uint64(_half_bits(size))
    mask = (np.uint64(1) << half) - np.uint64(1)
    outside = np.arange(len(images) if size > 1 else 0)
    while len(outside):
        left, right = images[outside] >> half, images[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix_many(right ^ np.uint64(key)) & mask)
        images[outside] = left << half | right
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _half_bits(size: int) -> int:
    return ((size - 1).bit_length() + 1) // 2


def _mix(word: int) -> int:
    """64-bit finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _WORD
    return word ^ word >> 31


def _mix_many(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


@lru_cache(maxsize=256)
def round_keys(seed: int, fingerprint: str, epoch: int) -> tuple[int, ...]:
    """Round keys of one epoch of one set."""
    raw = hashlib.blake2b(f"{seed}/{fingerprint}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
