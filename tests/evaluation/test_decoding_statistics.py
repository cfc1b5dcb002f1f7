"""Figures of a decoded batch, by hand and against what an observer saw."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from nld_train.decoding import DecodeResult
from nld_train.decoding.algorithms.statistics import (
    acceptance_by_position,
    accepted_length,
    agreement,
    merged,
    one_sequence,
    tokens_per_forward,
)


def result(accepted: list[list[int]], drafted: list[list[bool]], forwards: list[int]) -> DecodeResult:
    rows = len(accepted)
    return DecodeResult(
        token_ids=[[7] * len(flags) for flags in drafted],
        finish=["length"] * rows,
        forwards=max(forwards),
        prefill=1,
        sequence_forwards=forwards,
        prefill_tokens=[1] * rows,
        accepted=accepted,
        committed_by=[[0] * len(flags) for flags in drafted],
        drafted=drafted,
        seconds=[0.5] * rows,
    )


D, P = True, False


def test_acceptance_counts_cycles_that_had_a_draft_there() -> None:
    # Block length 4, budget 9: three drafts, then one (two tokens are left after 1 + 3 + 3).
    found = acceptance_by_position(result([[3, 3, 2]], [[P, D, D, P, D, D, P, D, P]], [6]), 4, [9])
    assert found == {1: 1.0, 2: 1.0, 3: 0.0}
    refused = acceptance_by_position(result([[1, 4]], [[P, P, D, D, D, P]], [4]), 4, [6])
    assert refused == {1: 1 / 2, 2: 1 / 2, 3: 1 / 2}


def test_drafts_behind_a_stop_are_not_known() -> None:
    stopped = acceptance_by_position(result([[2]], [[P, D, D]], [2]), 4, [20])
    assert stopped == {1: 1.0, 2: 1.0}
    by_the_ar_token = acceptance_by_position(result([[2]], [[P, D, P]], [2]), 4, [20])
    assert by_the_ar_token == {1: 1.0, 2: 0.0, 3: 0.0}


def test_rows_add_up() -> None:
    both = result([[3], [1, 1]], [[P, D, D, P], [P, P, P]], [2, 4])
    assert acceptance_by_position(both, 3, [10, 10]) == {1: 1 / 3, 2: 1 / 3}
    assert tokens_per_forward(both) == 7 / 6
    assert accepted_length(both) == pytest.approx(5 / 3)


def test_rows_apart_and_together_again() -> None:
    both = result([[3], [1, 1]], [[P, D, D, P], [P, P, P]], [2, 4])
    apart = [one_sequence(both, row) for row in range(2)]
    assert apart == [result([[3]], [[P, D, D, P]], [2]), result([[1, 1]], [[P, P, P]], [4])]
    assert merged(apart) == replace(both, forwards=6, prefill=2)
    assert merged(apart).seconds == both.seconds
    assert tokens_per_forward(merged([])) == 0


def test_agreement_counts_missing_tokens_as_different() -> None:
    assert agreement([[1, 2, 3]], [[1, 2, 3]]) == 1
    assert agreement([[1, 2, 3], [4]], [[1, 9, 3], [4, 5]]) == 3 / 5


def test_acceptance_is_what_an_observer_saw(trained: object) -> None:
    """On real weights: each cycle's accepted drafts are its new tokens but the last, its other drafts were refused."""
    from pathlib import Path

    from nld_train.decoding import DecodeOptions, Progress
    from nld_train.decoding.algorithms.decode import decode
    from nld_train.decoding.load import find_source

    assert isinstance(trained, Path)
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    lengths: dict[int, int] = {}

    def observe(progress: Progress) -> None:
        before = lengths.get(progress.sequence)
        lengths[progress.sequence] = len(progress.tokens)
        if before is not None:
            seen[progress.sequence].append((len(progress.tokens) - before - 1, len(progress.rejected)))

    options = DecodeOptions(max_new_tokens=30, block_length=5)
    with find_source(trained).open() as engine:
        decoded = decode(engine, [[40, 50, 60], [100] * 9], "linear", options, observer=observe)
    cycles = [cycle for row in seen.values() for cycle in row]
    expected = {}
    for position in range(1, 5):
        tested = [good for good, refused in cycles if good + refused >= position]
        expected[position] = sum(good >= position for good in tested) / len(tested)
    assert acceptance_by_position(decoded, 5, [30, 30]) == expected
    assert 0 < expected[1] < 1
