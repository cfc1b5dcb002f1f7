"""Positions, blocks and visibility against plain loops over their definition."""

from __future__ import annotations

import naive
import numpy as np
import pytest
import torch

from nld_train.config.counts import causal_visible_pairs, joint_visible_pairs
from nld_train.masking.layout import StreamLayout, block_indices, clean_block_ends, positions_in_document
from nld_train.masking.visibility import dense_mask, visible_pairs


def random_documents(generator: np.random.Generator, length: int) -> list[int]:
    """Documents of random lengths; their numbers need not grow, and may come back after another document."""
    names = np.cumsum(generator.random(length) < generator.choice([0.0, 0.1, 0.4]))
    return [int(name) % 3 * 7 for name in names]


def cases(count: int = 40) -> list[tuple[list[list[int]], int]]:
    """Micro-batches of one to three rows and block sizes below, beyond and not dividing the length."""
    generator = np.random.default_rng(20)
    found = []
    for _ in range(count):
        length, rows = int(generator.integers(1, 15)), int(generator.integers(1, 4))
        found.append(
            ([random_documents(generator, length) for _ in range(rows)], int(generator.integers(1, length + 3)))
        )
    return found


def without_returns(documents: list[int]) -> list[int]:
    """Gives a document a new number each time another one comes between, as packing does: equal values are adjacent."""
    borders = [i > 0 and documents[i] != documents[i - 1] for i in range(len(documents))]
    return np.cumsum(borders).tolist()


@pytest.mark.parametrize(("rows", "block_size"), cases())
def test_positions_and_blocks_are_counted_from_each_documents_start(rows: list[list[int]], block_size: int) -> None:
    documents = np.array(rows)
    positions, blocks = positions_in_document(documents), block_indices(documents, block_size)
    for row, line in enumerate(rows):
        indices = range(len(line))
        assert positions[row].tolist() == [naive.position_in_document(line, index) for index in indices]
        names = [naive.block_of(line, index, block_size) for index in indices]
        order = list(dict.fromkeys(names))
        assert blocks[row].tolist() == [order.index(name) for name in names]


@pytest.mark.parametrize("two_streams", [True, False])
@pytest.mark.parametrize(("rows", "block_size"), cases())
def test_the_mask_is_the_rule_in_words(rows: list[list[int]], block_size: int, two_streams: bool) -> None:
    rows = [without_returns(row) for row in rows]
    layout = StreamLayout.of(torch.tensor(rows), block_size, two_streams)
    mask = dense_mask(layout)
    total = len(rows[0]) * (2 if two_streams else 1)
    assert mask.shape == (len(rows), 1, total, total)
    assert layout.total_length == total
    for row, line in enumerate(rows):
        assert mask[row, 0].tolist() == naive.visibility(line, block_size, two_streams)


@pytest.mark.parametrize("two_streams", [True, False])
@pytest.mark.parametrize(("rows", "block_size"), cases()[:25])
def test_clean_tokens_that_see_their_whole_block(rows: list[list[int]], block_size: int, two_streams: bool) -> None:
    rows = [without_returns(row) for row in rows]
    layout = with_whole_blocks(StreamLayout.of(torch.tensor(rows), block_size, two_streams), block_size)
    mask = dense_mask(layout)
    assert mask[:, 0].tolist() == [naive.visibility(line, block_size, two_streams, True) for line in rows]
    assert visible_pairs(layout).tolist() == mask.sum(dim=(1, 2, 3)).tolist()


def with_whole_blocks(layout: StreamLayout, block_size: int) -> StreamLayout:
    ends = [clean_block_ends(row, block_size) for row in layout.documents.numpy()]
    return layout.with_clean_ends(torch.from_numpy(np.array(ends)))


def test_a_picture_of_clean_tokens_that_see_their_whole_block() -> None:
    """As below; only the clean half differs."""
    layout = with_whole_blocks(StreamLayout.of(torch.tensor([[0, 0, 0, 1, 1]]), 2, True), 2)
    picture = [".....xx...", ".....xx...", ".....xxx..", "........xx", "........xx"]
    assert ["".join("x" if on else "." for on in row) for row in dense_mask(layout)[0, 0, 5:].tolist()] == picture


def test_a_picture_of_the_rule() -> None:
    """Length 5 in two documents, blocks of 2: written by hand, noisy stream first."""
    layout = StreamLayout.of(torch.tensor([[0, 0, 0, 1, 1]]), 2, True)
    picture = [
        "xx........",
        "xx........",
        "..x..xx...",
        "...xx.....",
        "...xx.....",
        ".....x....",
        ".....xx...",
        ".....xxx..",
        "........x.",
        "........xx",
    ]
    assert ["".join("x" if on else "." for on in row) for row in dense_mask(layout)[0, 0].tolist()] == picture


def test_both_streams_have_the_same_positions() -> None:
    """Positions, and so the query scale, must not continue from the noisy stream into the clean one."""
    layout = StreamLayout.of(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]]), 2, True)
    assert layout.stacked_positions().tolist() == [[0, 1, 2, 3] * 2, [0, 1, 0, 1] * 2]
    assert StreamLayout.of(torch.zeros(1, 3, dtype=torch.int64), 2, False).stacked_positions().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 12, 64])
def test_counted_pairs_are_the_ones_in_the_mask(length: int, block_size: int) -> None:
    layout = StreamLayout.of(torch.zeros(1, length, dtype=torch.int64), block_size, True)
    pairs = int(dense_mask(layout).sum())
    assert pairs == joint_visible_pairs(length, block_size) == naive.visible_pairs(length, block_size)
    if length % block_size == 0:
        assert pairs == length * (2 * length + block_size + 1) // 2
    whole = with_whole_blocks(layout, block_size)
    pairs = joint_visible_pairs(length, block_size, "block")
    assert (
        pairs
        == int(dense_mask(whole).sum())
        == int(visible_pairs(whole))
        == naive.visible_pairs(length, block_size, whole_blocks=True)
    )
    alone = StreamLayout.of(torch.zeros(1, length, dtype=torch.int64), block_size, False)
    assert int(dense_mask(alone).sum()) == causal_visible_pairs(length)


def test_a_noisy_block_never_sees_its_own_clean_tokens() -> None:
    """Otherwise a noisy token could attend to its own target."""
    for rows, block_size in cases():
        rows = [without_returns(row) for row in rows]
        length = len(rows[0])
        mask = dense_mask(StreamLayout.of(torch.tensor(rows), block_size, True))[:, 0]
        noisy_to_clean = mask[:, :length, length:]
        assert not noisy_to_clean.diagonal(dim1=1, dim2=2).any()
        assert not noisy_to_clean.triu().any()
        assert not mask[:, length:, :length].any()


def test_a_noisy_block_sees_no_clean_token_that_sees_its_targets() -> None:
    """Where clean tokens see their whole block, a block of theirs that reached into a noisy one would show it."""
    for rows, block_size in cases():
        rows = [without_returns(row) for row in rows]
        length = len(rows[0])
        layout = with_whole_blocks(StreamLayout.of(torch.tensor(rows), block_size, True), block_size)
        mask = dense_mask(layout)[:, 0].long()
        # Through one clean token in between; clean tokens see each other's blocks whole, so that two show no more.
        reached = mask[:, :length, length:] @ mask[:, length:, length:] > 0
        assert not reached.triu().any()
        assert mask.diagonal(dim1=1, dim2=2).all()
