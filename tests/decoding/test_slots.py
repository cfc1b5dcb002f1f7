"""A step over some slots of the KV cache, as when a prompt is admitted to a freed slot, on both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from tiny_shape import SHAPE
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor

from nld_train.decoding import Engine, Step

OLD = [[5, 6, 7, 8, 9], [20, 30], [11, 12, 13]]
NEW = {0: [40, 41], 2: [50, 51, 52, 53, 54, 55, 56]}
BLOCK = [[15, 16], [17, 18], [19, 21]]
# Of the larger model of the two kinds of engines, with at most 9 tokens in the cache and the block.
ADDITIONS = forward_additions({**SHAPE, "num_hidden_layers": 4}, 16)


@pytest.fixture(scope="module", params=["megatron", "sdpa", "eager", "flex_attention", "flash"])
def engine(
    request: pytest.FixtureRequest, open_engine: Callable[[str], AbstractContextManager[Engine]]
) -> Iterator[Engine]:
    with open_engine(request.param) as opened:
        yield opened


def read(engine: Engine, rows: list[list[int]], cached: list[int], slots: list[int] | None, causal: bool) -> Tensor:
    """Logits of the sequences' real tokens, one after the other: `[n, V]`."""
    counts = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(counts.max())), engine.mask_token_id)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    step = Step(
        tokens=tokens,
        positions=torch.tensor(cached)[:, None] + torch.arange(tokens.shape[1]),
        counts=counts,
        cached=torch.tensor(cached),
        causal=torch.full((len(rows),), causal),
        slots=None if slots is None else torch.tensor(slots),
    )
    return engine.forward(step)[torch.arange(tokens.shape[1]) < counts[:, None]].clone()


@pytest.mark.parametrize("slots", [[0], [2], [0, 2], [2, 0]])
def test_a_prompt_is_admitted_to_a_freed_slot(engine: Engine, slots: list[int]) -> None:
    """Its logits, and afterwards those of all sequences, are as if it had been there from the beginning."""
    rows = [NEW[slot] if slot in slots else prompt for slot, prompt in enumerate(OLD)]
    fresh = [rows[slot] for slot in slots]
    engine.allocate(3, 16)
    read(engine, OLD, [0, 0, 0], None, causal=True)
    admitted = read(engine, fresh, [0] * len(slots), slots, causal=True)
    later = [read(engine, BLOCK, [len(row) for row in rows], None, causal) for causal in (False, True)]

    engine.allocate(len(slots), 16)
    assert_close_to_rounding(admitted, read(engine, fresh, [0] * len(slots), None, causal=True), ADDITIONS)
    engine.allocate(3, 16)
    read(engine, rows, [0, 0, 0], None, causal=True)
    expected = [read(engine, BLOCK, [len(row) for row in rows], None, causal) for causal in (False, True)]
    assert_close_to_rounding(later, expected, ADDITIONS)


def test_a_block_over_some_slots(engine: Engine) -> None:
    """Slots in the middle of their text, each seeing its own entries."""
    engine.allocate(3, 16)
    read(engine, OLD, [0, 0, 0], None, causal=True)
    lengths = [len(row) for row in OLD]
    whole = read(engine, BLOCK, lengths, None, causal=False).view(3, 2, -1)
    for slots in ([1], [0, 2], [2, 1]):
        part = read(engine, [BLOCK[slot] for slot in slots], [lengths[slot] for slot in slots], slots, causal=False)
        assert_close_to_rounding(part.view(len(slots), 2, -1), whole[slots], ADDITIONS)
    assert whole.std() > 0.1
