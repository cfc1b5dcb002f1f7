"""Random layouts with heads, and what a softmax in plain loops gives for them: outputs and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import naive
import numpy as np
import torch
from oracle import tiny_config
from tolerance import largest
from torch import Tensor

from nld_train.masking.layout import StreamLayout, clean_block_ends
from nld_train.model.attention import tiled
from nld_train.model.attention.core import backend
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import Attend, StreamContext

CPU = torch.device("cpu")
# FlexAttention's kernels have no narrower heads.
WIDTH = 16


def with_whole_blocks(layout: StreamLayout, block_size: int) -> StreamLayout:
    """The same streams with clean tokens that see their whole block."""
    ends = [clean_block_ends(row, block_size) for row in layout.documents.numpy()]
    return layout.with_clean_ends(torch.from_numpy(np.array(ends)))


@dataclass(frozen=True)
class Case:
    """A micro-batch's documents and the shape of its heads."""

    documents: tuple[tuple[int, ...], ...]
    block_size: int
    two_streams: bool
    heads: int
    groups: int
    whole_blocks: bool = False

    def layout(self) -> StreamLayout:
        layout = StreamLayout.of(torch.tensor(self.documents), self.block_size, self.two_streams)
        return with_whole_blocks(layout, self.block_size) if self.whole_blocks else layout

    def context(self, device: torch.device = CPU) -> StreamContext:
        return StreamContext.of(self.layout(), RotaryEmbedding(tiny_config().model, device), torch.float32)

    def inputs(self, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Query `[b, heads, S, WIDTH]`, key and value `[b, groups, S, WIDTH]`, with gradients."""
        generator = torch.Generator().manual_seed(len(self.documents[0]))
        shapes = [
            (len(self.documents), count, self.layout().total_length, WIDTH) for count in (self.heads, self.groups)
        ]
        drawn = [2 * torch.randn(shape, generator=generator) for shape in (shapes[0], shapes[1], shapes[1])]
        return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def attend_of(name: str) -> Attend:
    return tiled.attend if name == "tiled" else backend(name)


def random_cases(count: int) -> list[Case]:
    """Equal and different rows; blocks longer than documents and not dividing them; one and two streams; GQA."""
    generator = np.random.default_rng(11)
    found = []
    for number in range(count):
        length, rows = int(generator.integers(1, 12)), int(generator.integers(1, 4))
        border = generator.choice([0.0, 0.2, 0.5])
        documents = [tuple(np.cumsum(generator.random(length) < border).tolist()) for _ in range(rows)]
        if number % 3 == 0:
            documents = [documents[0]] * rows
        heads, groups = [(4, 2), (3, 3), (6, 1)][number % 3]
        found.append(Case(tuple(documents), int(generator.integers(1, length + 3)), number % 4 != 0, heads, groups))
    return [*found, *(replace(case, whole_blocks=True) for case in found[:6])]


# Taking the first and the last row together and putting them back are different permutations.
MIXED = Case(((0, 0, 0, 1), (0, 0, 0, 0), (0, 1, 1, 1), (0, 0, 0, 1)), 2, True, 4, 2)
CASES = [*random_cases(13), MIXED, replace(MIXED, whole_blocks=True)]
LAST = len(CASES) - 2


def naive_attention(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Query by query in float64: softmax over the keys that it may see, by name."""
    output = torch.zeros(query.shape, dtype=torch.float64)
    for row, documents in enumerate(case.documents):
        sees = naive.visibility(documents, case.block_size, case.two_streams, case.whole_blocks)
        for head in range(case.heads):
            group = head * case.groups // case.heads
            for index, line in enumerate(sees):
                keys = [other for other, on in enumerate(line) if on]
                scores = key[row, group, keys].double() @ query[row, head, index].double() / WIDTH**0.5
                output[row, head, index] = scores.softmax(0) @ value[row, group, keys].double()
    return output


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a fixed random direction of the output."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output)
    return torch.autograd.grad((output * direction).sum(), inputs)


def additions(case: Case) -> int:
    """Of a score, of the softmax over all keys, of its average, and of a gradient over all queries and their heads."""
    total = case.layout().total_length
    return 3 * (WIDTH + 2 * total) + total * case.heads // case.groups


def scale_of(wanted: Tensor) -> float:
    """The largest entry, or 1, times the largest score, which is about 20."""
    return 20 * max(1.0, largest(wanted))


@cache
def expectation(case: Case) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients of the loops."""
    inputs = case.inputs(dtype=torch.float64)
    output = naive_attention(case, *inputs)
    return output.detach(), gradients(output, inputs)
