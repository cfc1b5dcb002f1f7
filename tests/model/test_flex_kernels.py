"""FlexAttention's masks and kernels: how often they are made and compiled, and what they give on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_cases import CASES, CPU, WIDTH, Case, additions, expectation, gradients, naive_attention, scale_of
from oracle import tiny_config
from tolerance import assert_close_to_rounding
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from nld_train.errors import UserError
from nld_train.masking.layout import StreamLayout
from nld_train.model.attention import flex
from nld_train.model.attention.core import backend
from nld_train.model.attention.flex import block_mask
from nld_train.model.compiled import CompiledFunction, forget_compiled
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import StreamContext


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
