"""The part of a sample on each context-parallel rank."""

from __future__ import annotations

import naive
import pytest
import torch

from nld_train.masking.context_parallel import ContextShard


def shards(ranks: int, length: int, two_streams: bool) -> list[ContextShard]:
    return [ContextShard(rank, ranks, length, length * two_streams) for rank in range(ranks)]


def test_a_rank_has_matching_chunks_of_both_streams() -> None:
    assert [shard.indices.tolist() for shard in shards(2, 8, two_streams=True)] == [
        [0, 1, 6, 7, 8, 9, 14, 15],
        [2, 3, 4, 5, 10, 11, 12, 13],
    ]
    assert [shard.indices.tolist() for shard in shards(2, 8, two_streams=False)] == [[0, 1, 6, 7], [2, 3, 4, 5]]


def test_streams_of_different_lengths_are_split_each_for_itself() -> None:
    assert ContextShard(0, 2, 8, 4).indices.tolist() == [0, 3, 4, 5, 10, 11]
    assert ContextShard(1, 2, 8, 4).indices.tolist() == [1, 2, 6, 7, 8, 9]
    assert ContextShard(1, 2, 8, 4).order.tolist() == [0, 6, 7, 1, 2, 3, 8, 9, 10, 11, 4, 5]


@pytest.mark.parametrize("two_streams", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_order_puts_the_shards_together(ranks: int, two_streams: bool) -> None:
    found = shards(ranks, 24, two_streams)
    whole = torch.cat([shard.indices for shard in found])[found[0].order]
    assert whole.tolist() == list(range(24 * (1 + two_streams)))


@pytest.mark.parametrize("block_size", [1, 4, 12])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_as_much_to_attend_to(ranks: int, block_size: int) -> None:
    sees = naive.visibility([0] * 96, block_size, two_streams=True)
    pairs = [sum(sum(sees[index]) for index in shard.indices.tolist()) for shard in shards(ranks, 96, True)]
    assert pairs == [sum(pairs) // ranks] * ranks


@pytest.mark.parametrize(
    ("size", "ranks", "cut"),
    [(3, 2, False), (2, 2, False), (4, 2, True), (6, 2, False), (24, 1, False), (3, 4, False), (4, 4, True)],
)
def test_blocks_on_two_ranks_are_found(size: int, ranks: int, cut: bool) -> None:
    """Of 24 tokens in chunks of 6 and of 3, except for the border in the middle, whose chunks are on one rank."""
    blocks = (torch.arange(24) // size).expand(2, -1)
    assert ContextShard(0, ranks, 24, 24).cuts(blocks) == cut


def test_a_block_across_the_middle_is_on_the_last_rank() -> None:
    blocks = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]])
    assert not ContextShard(0, 2, 12, 12).cuts(blocks)
    assert ContextShard(0, 2, 12, 12).cuts(torch.cat([blocks, blocks.clamp(max=1)]))


def test_rows_are_found_in_their_shard() -> None:
    """Two samples: row r of sample b has index 2 r + b of the flattened hidden states."""
    rows = torch.tensor([0, 5, 12, 13, 8])  # indices 0, 2, 6, 6 and 4
    first, second = shards(2, 8, two_streams=False)
    assert [tensor.tolist() for tensor in first.find(rows, 2)] == [[True, False, True, True, False], [0, 4, 5]]
    assert [tensor.tolist() for tensor in second.find(rows, 2)] == [[False, True, False, False, True], [1, 4]]
