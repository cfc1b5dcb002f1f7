"""Blocks that begin anywhere, blocks that are causal, and the draws of drafter training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive
import numpy as np
import pytest
import torch
from tolerance import assert_close_to_rounding, largest
from torch.nn.attention.flex_attention import create_mask

from nld_train.masking.drafting import draw_drafts
from nld_train.masking.layout import StreamLayout, block_indices
from nld_train.masking.visibility import dense_mask
from nld_train.model.attention import chunked, tiled
from nld_train.model.attention.core import backend
from nld_train.model.attention.flex import block_mask
from nld_train.model.streams import StreamContext

CPU = torch.device("cpu")


def cases() -> list[Any]:
    """Documents of some rows, a block size, and an offset for each row; some rows differ in the offset alone."""
    generator = np.random.default_rng(3)
    found = []
    for number in range(24):
        length, rows, size = (int(generator.integers(low, high)) for low, high in ((1, 14), (1, 4), (2, 6)))
        documents = [np.cumsum(generator.random(length) < 0.2).tolist() for _ in range(rows)]
        if number % 2:
            documents = [documents[0]] * rows
        marks = [pytest.mark.long] * (number >= 12)
        found.append(pytest.param(documents, size, generator.integers(0, size + 1, rows).tolist(), marks=marks))
    return found


def naive_block(documents: list[int], index: int, size: int, offset: int) -> tuple[int, int]:
    """Where the document starts, and the block in it; -1 is what lies before the first whole one."""
    position = naive.position_in_document(documents, index)
    return index - position, (position - offset) // size if position >= offset else -1


def naive_sees(documents: list[int], size: int, offset: int, causal: bool, query: int, key: int) -> bool:
    length = len(documents)
    index, other = query % length, key % length
    if documents[index] != documents[other] or (query >= length and key < length):
        return False
    block, other_block = (naive_block(documents, one, size, offset) for one in (index, other))
    if query >= length:
        return other <= index
    if key >= length:
        return other_block < block
    return block == other_block and (not causal or other <= index)


def layout_of(rows: list[list[int]], size: int, offsets: list[int], causal: bool) -> StreamLayout:
    made = StreamLayout.of(torch.tensor(rows), size, True, np.array(offsets)[:, None])
    return replace(made, causal_blocks=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "size", "offsets"), cases())
def test_the_mask_is_the_rule_in_words(rows: list[list[int]], size: int, offsets: list[int], causal: bool) -> None:
    layout = layout_of(rows, size, offsets, causal)
    total = layout.total_length
    mask = dense_mask(layout)
    for row, documents in enumerate(rows):
        for query in range(total):
            expected = [naive_sees(documents, size, offsets[row], causal, query, key) for key in range(total)]
            assert mask[row, 0, query].tolist() == expected, (row, query)
    flex = create_mask(block_mask(layout, CPU).mask_mod, len(rows), 1, total, total, device="cpu")
    assert torch.equal(flex, mask)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "size", "offsets"), cases())
def test_backends_agree_with_the_dense_mask(
    rows: list[list[int]], size: int, offsets: list[int], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else `chunked` would compute such short products as `tiled`.
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)
    layout = layout_of(rows, size, offsets, causal)
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(len(rows), count, layout.total_length, 8, generator=generator) for count in (4, 2, 2)]
    results = {}
    attends = {name: backend(name) for name in ("dense", "chunked", "flex")} | {"tiled": tiled.attend}
    for name, attend in attends.items():
        inputs = [tensor.clone().requires_grad_(name != "flex") for tensor in heads]
        nothing = torch.zeros(1)
        output = attend(*inputs, StreamContext(layout, nothing, nothing, None))
        gradients = () if name == "flex" else torch.autograd.grad(output.square().sum(), inputs)
        results[name] = (output.detach(), *gradients)
    for name in ("chunked", "flex", "tiled"):
        for found, expected in zip(results[name], results["dense"], strict=False):
            # A score adds up 8 products, a softmax and its average all keys, a gradient all queries of two heads;
            # a weight is off by what its score is off, and scores go up to 5.
            additions, scale = 3 * (8 + 4 * layout.total_length), 5 * max(1.0, largest(expected))
            assert_close_to_rounding(found, expected, additions, scale=scale)


def test_a_picture_of_visibility_in_verification() -> None:
    """Length 5 in one document, blocks of 2 from index 1 on: written by hand, noisy stream first."""
    picture = [
        "x.........",
        ".x...x....",
        ".xx..x....",
        "...x.xxx..",
        "...xxxxx..",
        ".....x....",
        ".....xx...",
        ".....xxx..",
        ".....xxxx.",
        ".....xxxxx",
    ]
    mask = dense_mask(layout_of([[0] * 5], 2, [1], causal=True))[0, 0]
    assert ["".join("x" if on else "." for on in row) for row in mask.tolist()] == picture


def test_without_an_offset_blocks_are_the_ones_of_training() -> None:
    documents = np.array([[0, 0, 0, 0, 1, 1, 1, 2]])
    for size in (1, 2, 3, 9):
        # An offset of 0 and one of a whole block give the same blocks.
        for offset in (0, size):
            assert (block_indices(documents, size, offset) == block_indices(documents, size)).all()


def test_draws_are_functions_of_the_sample_index() -> None:
    draws = [draw_drafts(7, "drafter", index, 50, 0.25) for index in range(400)]
    again = draw_drafts(7, "drafter", 3, 50, 0.25)
    assert (again.prefixes == draws[3].prefixes).all()
    assert (again.uniform == draws[3].uniform).all()
    assert (again.greedy == draws[3].greedy).all()
    assert {int(8 * draw.prefixes[0]) for draw in draws} == set(range(8))
    assert np.mean([draw.greedy for draw in draws]) == pytest.approx(0.25, abs=0.02)
    assert np.mean([draw.uniform for draw in draws]) == pytest.approx(0.5, abs=0.01)
    other = draw_drafts(7, "drafter", 4, 50, 0.25)
    assert (other.uniform != again.uniform).all()
    assert not draw_drafts(7, "drafter", 0, 50, 0.0).greedy.any()
    assert draw_drafts(7, "drafter", 0, 50, 1.0).greedy.all()
