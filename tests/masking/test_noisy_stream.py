"""Noisy streams that are longer or shorter than the clean one: fill after documents, and streams of a given length."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import torch
from test_layout_and_visibility import without_returns
from tolerance import assert_close_to_rounding, largest
from torch.nn.attention.flex_attention import create_mask

from nld_train.masking.layout import StreamLayout
from nld_train.masking.noisy_stream import FILL, INERT, NoisyStream, answer_stream, fit, last_tokens, noisy_stream
from nld_train.masking.visibility import dense_mask
from nld_train.model.attention import chunked, decomposed, split, tiled
from nld_train.model.attention.core import backend
from nld_train.model.attention.flex import block_mask
from nld_train.model.streams import StreamContext

CPU = torch.device("cpu")


def stream_of(documents: list[int], block_size: int, offset: int = 0) -> NoisyStream:
    """The noisy stream of a sample and the document of the token after it."""
    array = np.array(documents)
    return noisy_stream(array[:-1], last_tokens(array), block_size, offset)


def random_samples(count: int) -> list[tuple[list[int], int]]:
    """Documents of up to 14 tokens and of the token after them, and a block size."""
    generator = np.random.default_rng(5)
    found = []
    for _ in range(count):
        length = int(generator.integers(1, 15))
        documents = np.cumsum(generator.random(length + 1) < generator.choice([0.0, 0.15, 0.5]))
        found.append((without_returns(documents.tolist()), int(generator.integers(1, length + 3))))
    return found


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize(("documents", "size"), random_samples(20))
def test_it_lists_what_the_rule_says(documents: list[int], size: int, offset: int) -> None:
    stream, expected = stream_of(documents, size, offset), naive.noisy_tokens(documents, size, offset)
    assert stream.sources.tolist() == [FILL if source is None else source for source, *_ in expected]
    names = [name[2:] for name in expected]
    order = list(dict.fromkeys(names))
    assert stream.blocks.tolist() == [order.index(name) for name in names]
    first = {name[2:]: name[0] for name in reversed(expected)}
    assert stream.begins.tolist() == [first[name] for name in names]
    clean = torch.tensor([documents[:-1]])
    layout = StreamLayout.of_clean(clean).with_noisy(
        *(torch.tensor(part)[None] for part in (stream.blocks, stream.begins))
    )
    assert layout.noisy is not None
    assert layout.noisy.positions[0].tolist() == [position for _, position, *_ in expected]


def test_a_document_is_filled_to_whole_blocks_where_it_ends() -> None:
    """By hand: blocks of 4; the first document ends in its second block, the second is cut by the end of the sample."""
    stream = stream_of([0, 0, 0, 0, 0, 1, 1, 1], 4)
    assert stream.sources.tolist() == [0, 1, 2, 3, 4, FILL, FILL, FILL, 5, 6]
    assert stream.blocks.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert stream.begins.tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 5, 5]
    assert stream.tokens(np.arange(10, 17), 2, 3).tolist() == [10, 11, 12, 13, 14, 2, 2, 2, 15, 16]
    assert stream_of([0, 0, 0, 0, 1], 4).sources.tolist() == [0, 1, 2, 3], "a whole block needs no fill"
    assert stream_of([0, 0, 0, 0, 0], 3).sources.tolist() == [0, 1, 2, 3], "the document goes on after the sample"


@pytest.mark.parametrize(("documents", "size"), random_samples(20))
@pytest.mark.parametrize("change", [-6, -1, 0, 1, 9])
def test_a_stream_of_another_length_has_whole_blocks_and_inert_ones(
    documents: list[int], size: int, change: int
) -> None:
    whole = stream_of(documents, size)
    capacity = max(1, len(whole.sources) + change)
    order = np.random.default_rng(capacity).random(len(documents))
    found = fit(whole, capacity, size, order)
    assert [len(part) for part in (found.sources, found.blocks, found.begins)] == [capacity] * 3

    def blocks_of(stream: NoisyStream) -> list[list[tuple[int, int]]]:
        parts = list(zip(stream.sources.tolist(), stream.begins.tolist(), strict=True))
        return [
            [part for part, block in zip(parts, stream.blocks, strict=True) if block == name]
            for name in np.unique(stream.blocks)
        ]

    kept = [block for block in blocks_of(found) if block[0][0] != INERT]
    every = blocks_of(whole)
    assert all(block in every for block in kept)
    assert [every.index(block) for block in kept] == sorted(every.index(block) for block in kept)
    left_out = [block for block in every if block not in kept]
    if capacity >= len(whole.sources):
        assert not left_out
        assert (found.sources == INERT).sum() == capacity - len(whole.sources)
    else:
        # With one block fewer left out it would not fit: of those left out, the last in the order.
        last = max(left_out, key=lambda block: order[every.index(block)])
        assert sum(map(len, kept)) + len(last) > capacity
        assert max(order[every.index(block)] for block in left_out) <= min(
            (order[every.index(block)] for block in kept), default=1.0
        )
    assert found.blocks.tolist() == np.cumsum(np.diff(found.blocks, prepend=found.blocks[0]) != 0).tolist()
    assert max(np.bincount(found.blocks[found.sources == INERT]), default=0) <= size
    assert not found.begins[found.sources == INERT].any()


def test_every_block_is_left_out_as_often_as_any_other() -> None:
    """Else the noisy stream would learn some part of a document more than others."""
    whole = stream_of([0] * 12 + [1] * 11 + [2], 4)  # 12 + 11 tokens and one of fill: 6 whole blocks
    generator, kept = np.random.default_rng(0), np.zeros(6)
    for _ in range(3000):
        stream = fit(whole, 16, 4, generator.random(6))
        kept[np.unique(stream.begins) // 4] += 1
    # A binomial count of 3000 draws with probability 2/3: a standard deviation of 26.
    assert np.abs(kept - 2000).max() < 130


def layout_of(rows: list[list[int]], size: int, capacity: int, causal: bool = False) -> StreamLayout:
    generator = np.random.default_rng(len(rows[0]))
    streams = [fit(stream_of(row, size), capacity, size, generator.random(len(row))) for row in rows]
    blocks, begins = (torch.from_numpy(np.stack([getattr(s, name) for s in streams])) for name in ("blocks", "begins"))
    layout = StreamLayout.of_clean(torch.tensor(rows)[:, :-1]).with_noisy(blocks, begins)
    return StreamLayout(layout.documents, layout.positions, layout.noisy, causal)


LAYOUTS = [
    ([[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]], 4, 17),
    ([[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]], 4, 7),
    ([[0, 0, 0, 1, 1, 1, 1, 2]] * 2, 3, 12),
    ([[0, 1, 1, 1, 1, 2, 2, 3], [0, 0, 0, 0, 0, 0, 0, 0]], 16, 20),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "size", "capacity"), LAYOUTS)
def test_visibility_of_unequal_streams_is_the_rule_in_words(
    rows: list[list[int]], size: int, capacity: int, causal: bool
) -> None:
    layout = layout_of(rows, size, capacity, causal)
    assert layout.noisy is not None
    assert (layout.noisy_length, layout.total_length) == (capacity, capacity + len(rows[0]) - 1)
    mask = dense_mask(layout)
    for row, documents in enumerate(rows):
        parts = layout.noisy.blocks[row].tolist(), layout.noisy.begins[row].tolist()
        assert mask[row, 0].tolist() == naive.visibility_of_streams(documents[:-1], *parts, causal)
        expected = [naive.noisy_position(documents[:-1], *parts, index) for index in range(capacity)]
        assert layout.noisy.positions[row].tolist() == expected
    total = layout.total_length
    flex = create_mask(block_mask(layout, CPU).mask_mod, len(rows), 1, total, total, device="cpu")
    assert torch.equal(flex, mask)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "size", "capacity"), LAYOUTS)
def test_backends_take_unequal_streams(
    rows: list[list[int]], size: int, capacity: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else `chunked` would compute such short products as `tiled`.
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)
    layout = layout_of(rows, size, capacity, causal)
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(len(rows), count, layout.total_length, 16, generator=generator) for count in (4, 2, 2)]
    nothing, results = torch.zeros(1), {}
    without_gradients = (backend("flex"), split.attend)
    for attend in (backend("dense"), backend("chunked"), decomposed.attend, tiled.attend, *without_gradients):
        inputs = [tensor.clone().requires_grad_(attend not in without_gradients) for tensor in heads]
        output = attend(*inputs, StreamContext(layout, nothing, nothing, None))
        gradients = () if attend in without_gradients else torch.autograd.grad(output.square().sum(), inputs)
        results[attend] = (output.detach(), *gradients)
    for found in results.values():
        for one, expected in zip(found, results[backend("dense")], strict=False):
            # As in test_draft_blocks: scores up to 5, sums over the width, all keys and all queries of two heads.
            additions, scale = 3 * (16 + 4 * layout.total_length), 5 * max(1.0, largest(expected))
            assert_close_to_rounding(one, expected, additions, scale=scale)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("blocks", ["answer", "document"])
@pytest.mark.parametrize(("documents", "size"), random_samples(20))
def test_the_stream_of_answers_has_their_blocks_and_nothing_else(
    documents: list[int], size: int, blocks: Any, fill: bool
) -> None:
    share = len(documents) * size % 5 / 4
    answers = np.random.default_rng(len(documents) + size).random(len(documents)) < share
    stream = answer_stream(np.array(documents), answers, size, blocks, fill)
    expected = naive.answer_tokens(documents, answers.tolist(), size, blocks == "answer", fill)
    assert stream.sources.tolist() == [FILL if source is None else source for source, *_ in expected]
    assert stream.begins.tolist() == [begin for _, _, begin, _ in expected]
    assert stream.maskable.tolist() == [maskable for *_, maskable in expected]
    names = [(start, begin) for _, start, begin, _ in expected]
    order = list(dict.fromkeys(names))
    assert stream.blocks.tolist() == [order.index(name) for name in names]


def test_answers_are_filled_and_prompts_are_left_out() -> None:
    """By hand: two conversations, the first with two answers, blocks of 3."""
    documents, answers = np.array([0] * 8 + [1] * 3), np.array([0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1], dtype=bool)
    stream = answer_stream(documents, answers, 3)
    assert stream.sources.tolist() == [2, 3, 4, 5, FILL, FILL, 7, FILL, FILL, 9, 10, FILL]
    assert stream.begins.tolist() == [2, 2, 2, 5, 5, 5, 7, 7, 7, 9, 9, 9]
    assert stream.maskable.all()
    of_documents = answer_stream(documents, answers, 3, "document")
    assert of_documents.sources.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, FILL, 8, 9, 10]
    assert of_documents.begins.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 8, 8, 8]
    assert of_documents.maskable.tolist() == [False, False, True, *[True] * 3, False, True, True, False, True, True]
