"""Attention of answer streams: blocks of several answers, fill and inert tokens before conversations of any length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close_to_rounding, largest
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from nld_train.masking import tiles
from nld_train.masking.context_parallel import ContextShard
from nld_train.masking.layout import StreamLayout, clean_block_ends
from nld_train.masking.noisy_stream import answer_stream, fit
from nld_train.masking.visibility import dense_mask, visible_pairs
from nld_train.model.attention import chunked, flex, tiled
from nld_train.model.attention.core import backend
from nld_train.model.streams import Attend, StreamContext

CPU = torch.device("cpu")
HEADS, GROUPS, WIDTH = 4, 2, 16
WITH_GRADIENTS: dict[str, Callable[[], Attend]] = {
    **{name: lambda name=name: backend(name) for name in ("dense", "chunked", "decomposed")},
    "tiled": lambda: tiled.attend,
    "tiles of 4 queries": lambda: tiled.attend,
}


@dataclass(frozen=True)
class Case:
    """Conversations and answers of some samples, and how blocks are made of them."""

    documents: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[bool, ...], ...]
    block_size: int
    blocks: Any
    fill: bool
    capacity: int
    causal: bool
    whole_blocks: bool = False

    def layout(self) -> StreamLayout:
        generator = np.random.default_rng(len(self.documents))
        documents = np.array(self.documents)
        streams = [
            fit(
                answer_stream(row, np.array(answers), self.block_size, self.blocks, self.fill),
                self.capacity,
                self.block_size,
                generator.random(len(row) + 1),
            )
            for row, answers in zip(documents, self.answers, strict=True)
        ]
        blocks, begins = (
            torch.from_numpy(np.stack([getattr(s, name) for s in streams])) for name in ("blocks", "begins")
        )
        layout = StreamLayout.of_clean(torch.from_numpy(documents)).with_noisy(blocks, begins)
        if self.whole_blocks:
            layout = layout.with_clean_ends(
                torch.from_numpy(np.stack([*map(self._clean_ends, documents, self.answers)]))
            )
        return replace(layout, causal_blocks=self.causal)

    def _clean_ends(self, documents: Any, answers: tuple[bool, ...]) -> Any:
        return clean_block_ends(documents, self.block_size, np.array(answers) if self.blocks == "answer" else None)

    def context(self) -> StreamContext:
        nothing = torch.zeros(1)
        return StreamContext(self.layout(), nothing, nothing, None)

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        total = self.layout().total_length
        shapes = [(len(self.documents), count, total, WIDTH) for count in (HEADS, GROUPS, GROUPS)]
        return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def random_cases(count: int) -> list[Any]:
    """Several answers in a conversation, none in others, answers of one token; too many tokens and too few."""
    generator = np.random.default_rng(5)
    found = []
    for number in range(count):
        rows, length = int(generator.integers(1, 4)), int(generator.integers(4, 24))
        documents = [tuple(np.cumsum(generator.random(length) < 0.15).tolist()) for _ in range(rows)]
        turns = [np.cumsum(generator.random(length) < 0.3) % 2 == 1 for _ in range(rows)]
        case = Case(
            documents=tuple(documents),
            answers=tuple(tuple(row.tolist()) for row in turns),
            block_size=int(generator.integers(1, 6)),
            blocks=("answer", "document")[number % 2],
            fill=number % 3 > 0,
            capacity=int(generator.integers(1, 3 * length)),
            causal=number % 4 == 3,
            whole_blocks=number % 5 > 2,
        )
        found.append(pytest.param(case, id=str(number), marks=[pytest.mark.long] * (number >= 8)))
    return found


CASES = random_cases(24)


def visibility(case: Case) -> list[list[list[bool]]]:
    """The mask of each row, written down."""
    noisy = case.layout().noisy
    assert noisy is not None
    streams = zip(case.documents, noisy.blocks.tolist(), noisy.begins.tolist(), case.answers, strict=True)
    return [
        naive.visibility_of_streams(documents, *noisy_blocks, case.causal, clean_blocks(case, documents, answers))
        for documents, *noisy_blocks, answers in streams
    ]


def clean_blocks(case: Case, documents: tuple[int, ...], answers: tuple[bool, ...]) -> list[tuple[int, int]] | None:
    if not case.whole_blocks:
        return None
    return naive.clean_block_names(documents, case.block_size, answers if case.blocks == "answer" else None)


@cache
def expectation(case: Case) -> tuple[Tensor, ...]:
    """Output and gradients, query by query: a softmax over the keys that it may see, by name."""
    query, key, value = inputs = case.inputs()
    rows = []
    for row, sees in enumerate(visibility(case)):
        heads = []
        for head in range(HEADS):
            group, tokens = head * GROUPS // HEADS, []
            for index, line in enumerate(sees):
                keys = [other for other, on in enumerate(line) if on]
                scores = key[row, group, keys] @ query[row, head, index] / WIDTH**0.5
                tokens.append(scores.softmax(0) @ value[row, group, keys])
            heads.append(torch.stack(tokens))
        rows.append(torch.stack(heads))
    output = torch.stack(rows)
    return output.detach(), *gradients(output, inputs)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.autograd.grad((output * direction.to(output)).sum(), inputs)


def assert_equal(case: Case, found: tuple[Tensor, ...], dtype: torch.dtype = torch.float64) -> None:
    """As in test_attention_backends: scores of up to 5, sums over the width, all keys and all queries of two heads."""
    for one, wanted in zip(found, expectation(case), strict=False):
        additions = 3 * (WIDTH + 4 * case.layout().total_length)
        assert_close_to_rounding(one, wanted, additions, scale=5 * max(1.0, largest(wanted)), dtype=dtype)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_the_naive_ones(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else `chunked` would compute such short products as `tiled`.
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)
    if name == "tiles of 4 queries":
        monkeypatch.setattr(tiles, "_QUERIES", 4)
    inputs = case.inputs()
    output = WITH_GRADIENTS[name]()(*inputs, case.context())
    assert_equal(case, (output, *gradients(output, inputs)))


@pytest.mark.parametrize("name", ["flex", "split"])
@pytest.mark.parametrize("case", CASES[:4])
def test_flex_gives_the_naive_answers(case: Case, name: str) -> None:
    """On a CPU FlexAttention has no backward pass; its mask is compared whole below."""
    output = backend(name)(*(tensor.detach().float() for tensor in case.inputs()), case.context())
    assert_equal(case, (output,), torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_masks_and_counts_are_the_rule(case: Case) -> None:
    layout = case.layout()
    mask, rows, total = dense_mask(layout), len(case.documents), layout.total_length
    assert mask[:, 0].tolist() == visibility(case)
    made = create_mask(flex.block_mask(layout, CPU).mask_mod, rows, 1, total, total, device="cpu")
    assert torch.equal(made, mask)
    assert visible_pairs(layout).tolist() == mask.sum(dim=(1, 2, 3)).tolist()
    clean = replace(layout, noisy=None)
    assert visible_pairs(clean).tolist() == dense_mask(clean).sum(dim=(1, 2, 3)).tolist()


@pytest.mark.parametrize("name", ["chunked", "tiled"])
def test_context_parallel_ranks_make_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and conversations straddle the borders of chunks."""
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)
    documents, answers = (0,) * 7 + (1,) * 9, (False, True, True, False) * 4
    case = Case((documents,), (answers,), 3, "answer", True, 12, False)
    query, key, value = inputs = case.inputs()
    shards = [ContextShard(rank, 2, 16, 12) for rank in range(2)]
    parts = [
        WITH_GRADIENTS[name]()(query[:, :, shard.indices], key, value, replace(case.context(), shard=shard))
        for shard in shards
    ]
    output = torch.cat(parts, dim=2)[:, :, shards[0].order]
    assert_equal(case, (output, *gradients(output, inputs)))


def packed(tokens: int, rows: int = 4, length: int = 512) -> StreamLayout:
    """Documents of about as many tokens, in rows that differ."""
    generator = np.random.default_rng(tokens)
    sizes = generator.integers(max(1, tokens - tokens // 3), tokens + tokens // 3 + 1, (rows, length))
    documents = np.stack([np.repeat(np.arange(length), row)[:length] for row in sizes])
    return StreamLayout.of(torch.from_numpy(documents), 16, two_streams=True)


def products(layout: StreamLayout, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Calls of a kernel in `chunked`, and pairs of query and key that they compute."""
    counted: list[int] = []
    kernel = F.scaled_dot_product_attention

    def counting(query: Tensor, key: Tensor, *others: Any, **named: Any) -> Tensor:
        counted.append(query.shape[0] * query.shape[2] * key.shape[2])
        return kernel(query, key, *others, **named)

    heads = [torch.zeros(len(layout.documents), 2, layout.total_length, 8) for _ in range(3)]
    nothing = torch.zeros(1)
    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", counting)
        backend("chunked")(*heads, StreamContext(layout, nothing, nothing, None))
    return len(counted), sum(counted)


def test_short_documents_take_few_products_of_about_their_visible_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 60 documents of 8 tokens in a row as with 5 of 100, while there are 1,000 blocks and documents in all."""
    for tokens in (2, 8, 30, 100):
        layout = packed(tokens)
        calls, pairs = products(layout, monkeypatch)
        assert calls <= 12
        # A document of a few tokens is padded to whole vectors, a longer one computes the half above its diagonal.
        assert pairs <= 4 * int(visible_pairs(layout).sum()) + 64 * len(tiles.Tiles.of(layout, torch.arange(1024)).row)


def test_long_documents_take_one_product_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their numbers are those of earlier versions, to the bit: one document in each row, or two long ones."""
    whole = StreamLayout.of(torch.zeros(4, 512, dtype=torch.int64), 16, two_streams=True)
    assert products(whole, monkeypatch)[0] == 512 // 16 + 1
    two = StreamLayout.of((torch.arange(512) >= 240).long().expand(4, -1), 16, two_streams=True)
    assert products(two, monkeypatch)[0] == 512 // 16 + 2


def test_the_same_layout_gives_the_same_bits() -> None:
    layout, results = packed(30), []
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, 2, 1024, 8, generator=generator).requires_grad_() for _ in range(3)]
    for _ in range(2):
        nothing = torch.zeros(1)
        output = backend("chunked")(*inputs, StreamContext(layout, nothing, nothing, None))
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
