"""What a decoded batch says of a way to read the weights: tokens per forward, acceptance, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from statistics import fmean

from nld_train.decoding.algorithms.outputs import DecodeResult

_OF_BATCH = ("forwards", "prefill")
_BY_ROW = [field.name for field in fields(DecodeResult) if field.name not in _OF_BATCH]


def tokens_per_forward(result: DecodeResult) -> float:
    """New tokens over decode forwards of all rows, each counted as if decoded alone; the prefill aside."""
    return sum(result.new_tokens) / max(1, sum(result.sequence_forwards))


def accepted_per_cycle(result: DecodeResult) -> float | None:
    """Mean of `DecodeResult.accepted` over the cycles of all rows; None where there was no cycle."""
    cycles = [count for row in result.accepted for count in row]
    return fmean(cycles) if cycles else None


def agreement(token_ids: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Share of places, over all rows, at which two decodings have the same token.

    A place that only the longer of two rows has counts as different.
    """
    pairs = list(zip(token_ids, reference, strict=True))
    same = sum(a == b for row, other in pairs for a, b in zip(row, other, strict=False))
    return same / max(1, sum(max(len(row), len(other)) for row, other in pairs))


def acceptance_by_position(result: DecodeResult, block_length: int, budgets: Sequence[int]) -> dict[int, float]:
    """How often the draft at each position of a block was accepted, in a speculative mode.

    A draft is accepted with all drafts before it. A cycle counts at the positions where it had a draft; where a stop
    ended the row inside its drafts, the fate of those behind the stop is not known, and they do not count.

    Args:
        result: of a linear or quadratic decoding.
        block_length: B.
        budgets: most new tokens that each row could have.

    Returns:
        Position (1 to B-1; the token at position 0 comes from the AR head) -> share of cycles, for positions that had
        a draft in any cycle.
    """
    tested, held = [0] * block_length, [0] * block_length
    for accepted, drafted, budget in zip(result.accepted, result.drafted, budgets, strict=True):
        place = 1  # the first token comes from the prefill
        for count in accepted:
            drafts = sum(drafted[place : place + count])
            # A cycle's last token is the AR token after the drafts, or a draft that stopped the row.
            known = drafts if drafts == count else min(block_length, budget - place) - 1
            for position in range(1, known + 1):
                tested[position] += 1
                held[position] += position <= drafts
            place += count
    return {position: held[position] / number for position, number in enumerate(tested) if number}


def one_sequence(result: DecodeResult, row: int) -> DecodeResult:
    """A row as if it had been decoded alone."""
    lists = {name: [getattr(result, name)[row]] for name in _BY_ROW}
    return DecodeResult(forwards=result.sequence_forwards[row], prefill=1, **lists)


def merged(results: Sequence[DecodeResult]) -> DecodeResult:
    """Results of several calls as one: rows in order, forwards and prefills added up."""
    lists = {name: [row for result in results for row in getattr(result, name)] for name in _BY_ROW}
    forwards, prefill = (sum(getattr(result, name) for result in results) for name in _OF_BATCH)
    return DecodeResult(forwards=forwards, prefill=prefill, **lists)
