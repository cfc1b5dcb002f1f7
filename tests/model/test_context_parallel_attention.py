"""Attention of context-parallel ranks: their shares make the whole, and what they send each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import CPU, WIDTH, Case, additions, attend_of, expectation, gradients, scale_of
from tolerance import assert_close_to_rounding
from torch import Tensor

from nld_train.masking.context_parallel import ContextShard
from nld_train.model.attention import chunked, gather, tiled
from nld_train.model.attention.core import backend
from nld_train.model.attention.gather import Exchange, with_all_keys


@pytest.fixture(autouse=True)
def products_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it `chunked` would compute such small cases as `tiled`, which is tested by its own name."""
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)


# Blocks and documents straddle the borders of chunks; with 3 ranks a chunk is one or two tokens.
SHARED = [
    Case(documents, 5, two_streams, 4, 2, whole_blocks)
    for documents in (((0,) * 12,), ((0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2), (0,) * 12))
    for two_streams, whole_blocks in ((True, False), (False, False), (True, True))
]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["dense", "chunked", "flex", "tiled"])
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_the_shares_of_context_parallel_ranks_make_the_whole(case: Case, name: str, ranks: int) -> None:
    """Each rank with all keys and its own queries; their outputs in the streams' order are those of one process."""
    inputs, (expected, expected_gradients) = case.inputs(), expectation(case)
    if name == "flex":
        inputs = [tensor.detach() for tensor in inputs]
    query, key, value = inputs
    shards = [ContextShard(rank, ranks, 12, 12 * case.two_streams) for rank in range(ranks)]
    outputs = [
        attend_of(name)(query[:, :, shard.indices], key, value, replace(case.context(), shard=shard))
        for shard in shards
    ]
    output = torch.cat(outputs, dim=2)[:, :, shards[0].order]
    assert_close_to_rounding(output, expected, additions(case), scale=scale_of(expected))
    if name != "flex":
        for found, wanted in zip(gradients(output, inputs), expected_gradients, strict=True):
            assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted))


# Blocks of 3 lie whole on each of two ranks, whose chunks have 3 tokens.
WHOLE = [Case(((0,) * 12,) * rows, 3, True, 4, 2, whole_blocks) for rows in (1, 2) for whole_blocks in (False, True)]


@pytest.mark.parametrize("name", ["dense", "chunked", "flex", "tiled"])
@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_a_rank_needs_its_own_noisy_keys_and_all_clean_ones(case: Case, name: str) -> None:
    """Where no block lies on two ranks."""
    inputs, (expected, expected_gradients) = case.inputs(), expectation(case)
    if name == "flex":
        inputs = [tensor.detach() for tensor in inputs]
    attend = with_all_keys(tiled.attend) if name == "tiled" else backend(name)
    outputs = []
    for shard in (ContextShard(rank, 2, 12, 12) for rank in range(2)):
        exchange = Exchange.of(shard, case.layout(), CPU)
        assert exchange.keys is not None
        assert len(exchange.keys) == 18
        query, key, value = inputs
        selected = (query[:, :, shard.indices], key[:, :, exchange.keys], value[:, :, exchange.keys])
        outputs.append(attend(*selected, replace(case.context(), shard=shard, exchange=exchange)))
    output = torch.cat(outputs, dim=2)[:, :, shard.order]
    assert_close_to_rounding(output, expected, additions(case), scale=scale_of(expected))
    if name != "flex":
        for found, wanted in zip(gradients(output, inputs), expected_gradients, strict=True):
            assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted))


@pytest.mark.parametrize(
    ("block_size", "two_streams", "tokens"), [(3, True, 6), (5, True, 12), (3, False, 6)], ids=["whole", "cut", "ar"]
)
def test_only_clean_keys_are_sent_where_no_block_is_cut(
    block_size: int, two_streams: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the bytes of both streams. What a rank then has are the keys that it names."""
    case = Case(((0,) * 12,), block_size, two_streams, 4, 2)
    _, key, value = (tensor.detach() for tensor in case.inputs())
    shards = [ContextShard(rank, 2, 12, 12 * two_streams) for rank in range(2)]
    exchanges = [Exchange.of(shard, case.layout(), CPU) for shard in shards]
    sent: list[Tensor] = []

    def collect(own: Tensor, group: object) -> Tensor:
        sent.append(own)
        return own.repeat(2, 1, 1, 1, 1)

    monkeypatch.setattr(gather.parallel_state, "get_context_parallel_group", lambda: None)
    monkeypatch.setattr(gather, "gather_from_sequence_parallel_region", collect)
    for shard, exchange in zip(shards, exchanges, strict=True):
        exchange(key[:, :, shard.indices], value[:, :, shard.indices])
    assert [each.numel() for each in sent] == [2 * tokens * case.groups * WIDTH] * 2
    assert all(each.is_contiguous() for each in sent)
    whole = torch.cat(sent)
    monkeypatch.setattr(gather, "gather_from_sequence_parallel_region", lambda own, group: whole)
    for shard, exchange in zip(shards, exchanges, strict=True):
        found = exchange(key[:, :, shard.indices], value[:, :, shard.indices])
        keys = torch.arange(case.layout().total_length) if exchange.keys is None else exchange.keys
        assert torch.equal(found[0], key[:, :, keys])
        assert torch.equal(found[1], value[:, :, keys])
