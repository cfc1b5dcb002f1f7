"""Figures of a decoded batch: tokens per forward, accepted length, acceptance rate by position, agreement.

All reports use these functions (docs/method.md, "Evaluation figures").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

from nld_train.decoding.algorithms.outputs import DecodeResult, per_forward

_OF_BATCH = ("forwards", "prefill", "graph_forwards")
_BY_SEQUENCE = [field.name for field in fields(DecodeResult) if field.name not in _OF_BATCH]


def decoding_figures(result: DecodeResult, reference: DecodeResult | None = None) -> dict[str, Any]:
    """The figures that all reports have.

    Args:
        result: of some prompts.
        reference: AR decoding of the same prompts.

    Returns:
        `tokens_per_forward`; `accepted_length`, None where there was no cycle; with a reference `agreement`; and the
        counts behind them, `new_tokens` and `forwards`.
    """
    found: dict[str, Any] = {
        "tokens_per_forward": tokens_per_forward(result),
        "accepted_length": accepted_length(result),
        "new_tokens": sum(result.new_tokens),
        "forwards": sum(result.sequence_forwards),
    }
    return found if reference is None else found | {"agreement": agreement(result.token_ids, reference.token_ids)}


def tokens_per_forward(result: DecodeResult) -> float:
    """New tokens over the decode forwards of all sequences, each counted as if decoded alone, without the prefill."""
    return per_forward(sum(result.new_tokens), sum(result.sequence_forwards))


def graph_share(result: DecodeResult) -> float:
    """Share of the decode forwards of a batch that ran in CUDA graphs; 0 on a CPU."""
    return result.graph_forwards / max(1, result.forwards)


def accepted_length(result: DecodeResult) -> float | None:
    """Mean of `DecodeResult.accepted` over the cycles of all sequences; None where there was no cycle."""
    cycles = [count for sequence in result.accepted for count in sequence]
    return fmean(cycles) if cycles else None


def agreement(token_ids: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Share of indices, over all sequences, at which two decodings have the same token.

    An index that only the longer of two sequences has counts as different.
    """
    pairs = list(zip(token_ids, reference, strict=True))
    same = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=False))
    return same / max(1, sum(max(len(one), len(other)) for one, other in pairs))


def acceptance_by_position(result: DecodeResult, block_length: int, budgets: Sequence[int]) -> dict[int, float]:
    """Acceptance rate of the draft at each position of a block, in a speculative mode.

    A draft is accepted only together with all drafts before it. A cycle counts at the positions where it had a draft.
    Drafts after a stop do not count, since the decoder does not record whether they were accepted.

    Args:
        result: of a linear or quadratic decoding.
        block_length: B.
        budgets: maximum number of new tokens of each sequence.

    Returns:
        Position (1 to B-1; the token at position 0 comes from the AR head) -> share of cycles, for positions that had
        a draft in any cycle.
    """
    tested, passed = [0] * block_length, [0] * block_length
    for accepted, drafted, budget in zip(result.accepted, result.drafted, budgets, strict=True):
        start = 1  # the first token comes from the prefill
        for count in accepted:
            drafts = sum(drafted[start : start + count])
            # A cycle's last token is the bonus token, or a draft that stopped the sequence.
            known = drafts if drafts == count else min(block_length, budget - start) - 1
            for position in range(1, known + 1):
                tested[position] += 1
                passed[position] += position <= drafts
            start += count
    return {position: passed[position] / number for position, number in enumerate(tested) if number}


def one_sequence(result: DecodeResult, sequence: int) -> DecodeResult:
    """A sequence as if it had been decoded alone."""
    lists: dict[str, Any] = {name: [getattr(result, name)[sequence]] for name in _BY_SEQUENCE}
    return DecodeResult(forwards=result.sequence_forwards[sequence], prefill=1, **lists)


def merged(results: Sequence[DecodeResult]) -> DecodeResult:
    """Results of several calls as one: sequences in order, sums of forwards and prefills."""
    lists: dict[str, Any] = {name: [one for each in results for one in getattr(each, name)] for name in _BY_SEQUENCE}
    return DecodeResult(**{name: sum(getattr(result, name) for result in results) for name in _OF_BATCH}, **lists)
