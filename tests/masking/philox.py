"""Philox 4x64-10 with Python's integers, from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""

from __future__ import annotations

_WORD = (1 << 64) - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def words(key: tuple[int, int], counter: tuple[int, int, int, int], count: int) -> list[int]:
    """`count` words of the stream that starts after `counter`, whose first word counts up."""
    found: list[int] = []
    first, *rest = counter
    while len(found) < count:
        first += 1
        found += _block(key, [first, *rest])
    return found[:count]


def _block(key: tuple[int, int], state: list[int]) -> list[int]:
    left, right = key
    for _ in range(10):
        a, b = _MULTIPLIERS[0] * state[0], _MULTIPLIERS[1] * state[2]
        state = [(b >> 64) ^ state[1] ^ left, b & _WORD, (a >> 64) ^ state[3] ^ right, a & _WORD]
        left, right = (left + _KEY_STEPS[0]) & _WORD, (right + _KEY_STEPS[1]) & _WORD
    return state
