"""All attention backends against a softmax in plain loops, over random layouts: outputs and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import naive
import numpy as np
import pytest
import torch
from oracle import tiny_config
from tolerance import assert_close_to_rounding, largest
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_mask, flex_attention

from nld_train.errors import UserError
from nld_train.masking.context_parallel import ContextShard
from nld_train.masking.layout import StreamLayout, clean_block_ends
from nld_train.masking.visibility import dense_mask
from nld_train.model.attention import chunked, decomposed, flex, gather, tiled
from nld_train.model.attention.chunked import Block, row_groups
from nld_train.model.attention.core import backend
from nld_train.model.attention.flex import block_mask
from nld_train.model.attention.gather import Exchange, with_all_keys
from nld_train.model.compiled import CompiledFunction, forget_compiled
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


@pytest.fixture(autouse=True)
def products_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it `chunked` would compute such small cases as `tiled`, which is tested by its own name."""
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)


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
# Each shape is compiled for the CPU, which takes seconds. The first four have one and two streams and all head counts.
COMPILED = [
    pytest.param(case, id=str(case), marks=[pytest.mark.long] * (4 <= number < LAST))
    for number, case in enumerate(CASES)
]

# Cases 0 to 6 have every combination that `random_cases` names.
HALF_LONG = [
    pytest.param(case, id=str(case), marks=[pytest.mark.long] * (7 <= number < LAST))
    for number, case in enumerate(CASES)
]


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


@pytest.mark.parametrize("name", ["dense", "chunked", "decomposed", "tiled"])
@pytest.mark.parametrize("case", HALF_LONG)
def test_outputs_and_gradients_are_the_naive_ones(case: Case, name: str) -> None:
    """In float64 to its rounding.

    In float32 also. Two softmaxes are merged by the difference of their normalisers, which are about 20 here, and
    whatever a score is off, a weight is off by that part of itself: so the scale is a score times an entry.
    """
    expected, expected_gradients = expectation(case)
    for dtype in (torch.float64, torch.float32):
        inputs = case.inputs(dtype=dtype)
        output = attend_of(name)(*inputs, case.context())
        assert output.shape == inputs[0].shape
        for found, wanted in zip((output, *gradients(output, inputs)), (expected, *expected_gradients), strict=True):
            assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted), dtype=dtype)


@pytest.mark.parametrize("name", ["flex", "split"])
@pytest.mark.parametrize("case", COMPILED)
def test_flex_gives_the_naive_outputs(case: Case, name: str) -> None:
    """On a CPU FlexAttention has no backward pass; its mask is compared whole instead, below."""
    inputs = [tensor.detach() for tensor in case.inputs()]
    output = backend(name)(*inputs, case.context())
    wanted = expectation(case)[0]
    assert_close_to_rounding(output, wanted, additions(case), scale=scale_of(wanted))


def draft_layouts() -> list[StreamLayout]:
    """Blocks that begin anywhere, other ones in each row, seen in both directions and causally."""
    documents = torch.tensor([[0] * 11, [0] * 4 + [1] * 7, [0] * 11])
    offsets = np.array([[1], [0], [3]])
    layout = StreamLayout.of(documents, 4, True, offsets)
    return [layout, replace(layout, causal_blocks=True), StreamLayout.of(documents[:1], 11, True)]


@pytest.mark.parametrize("layout", draft_layouts())
def test_the_decomposition_takes_blocks_of_any_length(layout: StreamLayout) -> None:
    """The layouts of a drafter stage, against the whole mask."""
    case = Case(tuple(map(tuple, layout.documents.tolist())), 4, True, 6, 2)
    inputs, context = case.inputs(), replace(case.context(), layout=layout)
    expected, output = (backend(name)(*inputs, context) for name in ("dense", "decomposed"))
    assert_close_to_rounding(output, expected, additions(case), scale=scale_of(expected))
    for found, wanted in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted))


@pytest.mark.parametrize("case", [parameter for parameter in COMPILED if parameter.values[0].two_streams])
def test_earlier_blocks_are_the_same_in_one_kernel(case: Case) -> None:
    """What CUDA runs, as far as a CPU can: outputs and normalisers, no gradients."""
    query, key, value = (tensor.detach() for tensor in case.inputs())
    length, context = case.layout().length, case.context()
    noisy, clean = (query[:, :, :length], key[:, :, length:]), value[:, :, length:]
    for found, wanted in zip(
        decomposed.in_one_kernel(*noisy, clean, context),
        decomposed.earlier_blocks(*noisy, clean, context),
        strict=True,
    ):
        assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted))


def test_softmaxes_without_keys_are_merged() -> None:
    """Neither weight nor gradient goes to the part that has none."""
    values = [torch.tensor([[3.0], [5.0]], requires_grad=True) for _ in range(2)]
    normalisers = [torch.tensor([0.2, 0.1], requires_grad=True), torch.tensor([float("-inf"), 0.1])]
    merged = decomposed.merge((values[0], normalisers[0]), (values[1], normalisers[1]))
    assert merged.flatten().tolist() == [3.0, 5.0]
    found = torch.autograd.grad(merged.sum(), [*values, normalisers[0]])
    assert [gradient.flatten().tolist() for gradient in found] == [[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]


def test_a_mask_is_made_once_for_equal_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of documents do not matter, borders do; every layer of a micro-batch takes the same."""
    made = []
    monkeypatch.setattr(flex, "make_mask", lambda *_, **__: made.append(object()) or made[-1])
    flex._masks.clear()

    def mask(documents: list[list[int]], size: int = 2, queries: Tensor | None = None) -> object:
        return block_mask(StreamLayout.of(torch.tensor(documents), size, True), CPU, queries)

    plain = mask([[0] * 6])
    assert plain is mask([[7] * 6])
    others = [
        mask([[0] * 6] * 3),
        mask([[0, 0, 0, 1, 1, 1]]),
        mask([[0] * 6], size=3),
        mask([[0] * 6], queries=torch.arange(6)),
        mask([[0] * 7]),
        mask([[0] * 6, [0, 0, 0, 1, 1, 1]]),
        *(block_mask(Case(((0,) * 6,), size, True, 4, 2, whole_blocks=True).layout(), CPU) for size in (2, 3)),
    ]
    assert len({id(each) for each in [plain, *others]}) == 9 == len(made)
    assert len(flex._masks) == flex._KEPT_MASKS
    flex._masks.clear()


def test_the_kernel_is_compiled_once_for_all_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other borders of documents are other inputs of the same kernel, not another kernel."""
    counter = CompileCounter()
    monkeypatch.setattr(flex, "kernel", lambda _: torch.compile(flex_attention, dynamic=False, backend=counter))
    for border in range(1, 6):
        case = Case(((0,) * border + (1,) * (8 - border),), 3, True, 4, 2)
        inputs = [tensor.detach() for tensor in case.inputs()]
        for _layer in range(2):
            output = backend("flex")(*inputs, case.context())
        wanted = naive_attention(case, *inputs)
        assert_close_to_rounding(output, wanted, additions(case), scale=scale_of(wanted))
    assert counter.frame_count == 1


def run_passes(kernel: CompiledFunction, layout: StreamLayout) -> None:
    """A training pass and a validation pass of FlexAttention; on a CPU both without gradients of the inputs."""
    shapes = [(len(layout.documents), count, layout.total_length, WIDTH) for count in (4, 2, 2)]
    inputs = [torch.randn(shape) for shape in shapes]
    for training in (True, False):
        with torch.set_grad_enabled(training):
            kernel(*inputs, block_mask=block_mask(layout, CPU), enable_gqa=True)


def test_borders_make_no_variant_of_the_kernel() -> None:
    """Nor does it matter whether all rows have the same ones. A run needs a few variants of those that are allowed."""
    counter = CompileCounter()
    kernel = CompiledFunction(flex._attention, "FlexAttention", "execution.attention", flex._VARIANTS, backend=counter)
    differ, alike = (StreamLayout.of(torch.tensor([first, [0] * 8]), 4, True) for first in ([0] * 3 + [1] * 5, [0] * 8))
    for layout in (differ, alike):
        run_passes(kernel, layout)
    assert counter.frame_count == 2, "with and without gradients"
    run_passes(kernel, replace(alike, causal_blocks=True))
    run_passes(kernel, replace(differ, causal_blocks=True))
    assert counter.frame_count == 4, "a drafter stage has two masks"


# Versions of torch without a limit for each function have one for all, which is only raised. The patch is torch's own:
# that of pytest leaves a setting that does not exist any more.
@torch._dynamo.config.patch(recompile_limit=2)
def test_more_variants_of_flex_than_the_limit_are_an_error() -> None:
    """Instead of all scores in memory."""
    kernel = CompiledFunction(flex._attention, "FlexAttention", "execution.attention", 2, backend="eager")
    run_passes(kernel, StreamLayout.of(torch.zeros(1, 8, dtype=torch.int64), 4, True))
    with pytest.raises(
        UserError, match=r"^execution\.attention: FlexAttention has been compiled for 2 .*\[1, 4, 18, 16\]"
    ):
        run_passes(kernel, StreamLayout.of(torch.zeros(1, 9, dtype=torch.int64), 4, True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_flex_mask_is_the_rule(case: Case) -> None:
    layout = case.layout()
    total, rows = layout.total_length, len(case.documents)
    mask = create_mask(block_mask(layout, CPU).mask_mod, rows, 1, total, total, device="cpu")
    assert torch.equal(mask, dense_mask(layout))


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


def compile_anew() -> None:
    """The tests have more shapes than a run."""
    forget_compiled()
    flex.clear_masks()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["flex", "split", "decomposed"])
@pytest.mark.parametrize("case", CASES[:8], ids=str)
def test_compiled_flex_gives_the_naive_gradients(case: Case, name: str) -> None:
    """Run with `-m gpu` alone: other tests redirect `torch.cuda` to the CPU in this process."""
    compile_anew()
    device = torch.device("cuda")
    inputs, (expected, expected_gradients) = case.inputs(device), expectation(case)
    output = backend(name)(*inputs, case.context(device))
    torch.testing.assert_close(output.cpu().double(), expected, rtol=1e-2, atol=1e-2)
    for found, wanted in zip(gradients(output, inputs), expected_gradients, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=2e-2, atol=2e-2)


# Packed and unpacked rows of many tiles, with the heads of a released model on one of eight tensor-parallel ranks.
LONG = [
    ((0,) * 1024,) * 2,
    (tuple(np.repeat(range(5), (100, 300, 17, 507, 100)).tolist()), (0,) * 1024),
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["flex", "split", "decomposed"])
@pytest.mark.parametrize("two_streams", [True, False])
@pytest.mark.parametrize("documents", LONG, ids=["whole", "packed"])
def test_bf16_is_within_its_rounding(documents: tuple[tuple[int, ...], ...], two_streams: bool, name: str) -> None:
    """Relative error of output and gradients, as norms, against the dense product in float32.

    A number rounded to the 8 bits of bf16 is off by 0.1 % of itself on average (2^-9 at most, 0.2 %). The output is
    rounded, and so are the probabilities behind it: 0.5 % leaves room for both. Gradients have two more roundings: 1 %.
    """
    compile_anew()
    device = torch.device("cuda")
    layout = StreamLayout.of(torch.tensor(documents), 64, two_streams)
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, count, layout.total_length, 128) for count in (4, 1, 1)]
    inputs = [torch.randn(shape, generator=generator).bfloat16().to(device).requires_grad_() for shape in shapes]
    whole = [tensor.detach().float().requires_grad_() for tensor in inputs]
    context = StreamContext.of(layout, RotaryEmbedding(tiny_config().model, device), torch.bfloat16)
    output, expected = backend(name)(*inputs, context), backend("dense")(*whole, context)
    found = [output, *gradients(output, inputs)]
    wanted = [expected, *gradients(expected, whole)]
    for bound, got, want in zip((0.005, 0.01, 0.01, 0.01), found, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() <= bound * want.norm()


def test_rows_are_grouped_by_their_documents() -> None:
    layout = StreamLayout.of(torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [5, 5, 5, 6]]), 2, True)
    groups = list(row_groups(layout))
    assert [group.rows for group in groups] == [(0, 2), (1,)]
    assert groups[0].documents == ((0, 3), (3, 4))
    assert groups[0].blocks == (Block(0, 0, 0, 2), Block(0, 2, 2, 3), Block(3, 3, 3, 4))


def test_tiles_at_the_papers_length_are_as_counted() -> None:
    """At L = 4096, 26.6 % of the square, 2.06 causal passes; docs/method.md, "Streams and visibility"."""
    documents = torch.zeros(1, 4096, dtype=torch.int64)
    tiles = []
    for two_streams in (True, False):
        mask = block_mask(StreamLayout.of(documents, 64, two_streams), CPU)
        assert mask.BLOCK_SIZE == (128, 128)
        full = 0 if mask.full_kv_num_blocks is None else int(mask.full_kv_num_blocks.sum())
        tiles.append(int(mask.kv_num_blocks.sum()) + full)
    assert tiles[0] / 64**2 == pytest.approx(0.266, abs=5e-4)
    assert tiles[0] / tiles[1] == pytest.approx(2.06, abs=5e-3)
