"""Weight gradients go into float32 buffers from the products themselves: their sums, and what Megatron's hooks see."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers
from oracle import pair, tiny_config
from torch import Tensor

from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll
from nld_train.model import weight_gradients
from nld_train.model.build import transformer_config
from nld_train.model.head import Head, gradients_added
from nld_train.model.weight_gradients import add_product, fuse

CPU = torch.device("cpu")
ROWS, CHUNK, WIDTH, VOCABULARY = 96, 3, 16, 40


class Accumulator:
    """A weight's gradient accumulation as Megatron's `DistributedDataParallel` hooks it, with overlapped reduction."""

    def __init__(self, weight: Tensor) -> None:
        weight.main_grad = torch.zeros(weight.shape)
        weight.grad_added_to_main_grad = False
        self.weight, self.sums = weight, []
        self._node = weight.expand_as(weight).grad_fn.next_functions[0][0]
        self._node.register_hook(self._hook)

    def _hook(self, *_: Any) -> None:
        weight = self.weight
        assert weight.grad is not None
        if not weight.grad_added_to_main_grad:
            weight.main_grad.add_(weight.grad)
        weight.grad = None
        self.sums.append(weight.main_grad.clone())


@pytest.fixture
def head(groups: object) -> Head:
    """A head in bf16."""
    config = transformer_config(tiny_config(execution__precision="bf16"), CPU)
    made = Head(WIDTH, VOCABULARY, config=config, init_method=None, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1)))
    return made


def example(seed: int = 2) -> tuple[Tensor, Tensor]:
    """Hidden rows and targets of one micro-batch."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, WIDTH, generator=generator).bfloat16().requires_grad_()
    return rows, torch.randint(0, VOCABULARY, (ROWS,), generator=generator)


def backward(head: Head, rows: Tensor, targets: Tensor, accumulate: bool) -> None:
    """Of the sum of losses, in chunks."""
    passed = gradients_added(rows, head.weight) if accumulate else rows
    nll = vocabulary_parallel_nll(VOCABULARY)
    named = {"accumulate": True} if accumulate else {}
    chunked_nll(passed, targets, lambda some: head(some, **named)[0], nll, CHUNK).sum().backward()


def exact_sum(head: Head, rows: Tensor, targets: Tensor) -> Tensor:
    """The chunks' gradients in float64, from the bf16 gradients of their logits."""
    total = torch.zeros(head.weight.shape, dtype=torch.float64)
    for some, chosen in zip(rows.detach().split(CHUNK), targets.split(CHUNK), strict=True):
        logits = (some @ head.weight.detach().T).requires_grad_()
        (gradient,) = torch.autograd.grad(vocabulary_parallel_nll(VOCABULARY)(logits, chosen).sum(), logits)
        total += gradient.double().T @ some.double()
    return total


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def test_the_heads_gradient_is_summed_in_float32(head: Head) -> None:
    """In bf16, as autograd sums it, each of 32 additions rounds the sum by up to 2^-9 of itself."""
    rows, targets = example()
    wanted = exact_sum(head, rows, targets)
    accumulator = Accumulator(head.weight)
    backward(head, rows, targets, accumulate=True)
    assert error(head.weight.main_grad, wanted) < 1e-6
    added, of_rows = head.weight.main_grad.clone(), rows.grad.clone()

    rows.grad = None
    head.weight.main_grad.zero_()
    head.weight.grad_added_to_main_grad = False
    backward(head, rows, targets, accumulate=False)
    assert error(head.weight.main_grad, wanted) > 1e-3, "otherwise there would be nothing to gain"
    assert torch.equal(rows.grad, of_rows)
    assert error(head.weight.main_grad, added.double()) < 2**-7
    assert len(accumulator.sums) == 2


def test_micro_batches_add_up_and_the_hook_comes_after_all_chunks(head: Head) -> None:
    """With overlap the reduction of a bucket starts in the hook."""
    accumulator, total = Accumulator(head.weight), torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    for seed in (3, 4, 5):
        rows, targets = example(seed)
        total += exact_sum(head, rows, targets)
        backward(head, rows, targets, accumulate=True)
        assert error(accumulator.sums[-1], total) < 1e-6
    assert len(accumulator.sums) == 3


def test_a_head_accumulates_only_where_its_weight_has_a_buffer(head: Head) -> None:
    assert not head.accumulates()
    Accumulator(head.weight)
    assert head.accumulates()
    with torch.no_grad():
        assert not head.accumulates()
    head.weight.requires_grad_(False)
    assert not head.accumulates()


@pytest.mark.usefixtures("groups")
def test_megatrons_layers_add_into_their_buffers() -> None:
    """The same sums as the hook makes from gradients, through Megatron's own fused function, without Apex."""
    model, _ = pair(tiny_config(model__num_hidden_layers=1))
    layer = model.decoder.layers[0]
    hidden = torch.randn(5, 1, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = [layer.mlp.linear_fc1.weight, layer.mlp.linear_fc2.weight]
    accumulators, found = [Accumulator(weight) for weight in weights], []
    for on in (False, True):
        fuse([model], on)
        for weight in weights:
            weight.main_grad.zero_()
            weight.grad_added_to_main_grad = False
        for _ in range(2):
            layer.mlp(hidden)[0].square().sum().backward()
        assert [weight.grad_added_to_main_grad for weight in weights] == [on, on]
        found.append([weight.main_grad.clone() for weight in weights])
    assert all(len(accumulator.sums) == 4 for accumulator in accumulators)
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain)


def test_switches_of_both_kinds_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine's is read in each forward pass; Apex' function stays where it is installed."""
    theirs, ours = torch.nn.Module(), torch.nn.Module()
    theirs.fuse_wgrad_accumulation = ours.gradient_accumulation_fusion = False
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", "Apex", raising=False)
    chunks = [torch.nn.ModuleList([theirs, ours, torch.nn.Linear(1, 1)])]
    assert fuse(chunks, on=True) == 2
    assert (theirs.fuse_wgrad_accumulation, ours.gradient_accumulation_fusion) == (True, True)
    assert fuse(chunks, on=False) == 2
    assert (theirs.fuse_wgrad_accumulation, ours.gradient_accumulation_fusion) == (False, False)
    assert layers.fused_weight_gradient_mlp_cuda == "Apex"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stand-ins for the products that only CUDA has, which say that they were called."""
    called: list[str] = []

    def addmm(total: Tensor, left: Tensor, right: Tensor, out_dtype: torch.dtype, out: Tensor) -> None:
        assert out is total
        assert out_dtype == total.dtype == torch.float32
        called.append("addmm")
        out.add_(left.float() @ right.float())

    def mm(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
        called.append("mm")
        return left.to(out_dtype) @ right.to(out_dtype)

    weight_gradients._mixed_product.cache_clear()
    yield SimpleNamespace(called=called, addmm=addmm, mm=mm, patch=monkeypatch)
    weight_gradients._mixed_product.cache_clear()


@pytest.mark.parametrize("has", [("addmm", "mm"), ("mm",), ()])
def test_the_best_product_that_torch_has_is_used(kernels: SimpleNamespace, has: tuple[str, ...]) -> None:
    for name in has:
        kernels.patch.setattr(torch, name, getattr(kernels, name))
    gradient, rows = torch.ones(6, 4).bfloat16(), torch.full((6, 3), 2.0).bfloat16()
    total = torch.full((4, 3), 1.0)
    for _ in range(2):
        add_product(total, gradient, rows)
    assert total.tolist() == [[25.0] * 3] * 4
    assert kernels.called == list(has[:1]) * 3, "once to try, twice to add"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_adds_bf16_products_to_float32_in_one_kernel() -> None:
    """Run with `-m gpu` alone. Products of bf16 numbers are exact in float32; the sum has its rounding."""
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(1)
    gradient, rows = (torch.randn(300, count, generator=generator).bfloat16() for count in (96, 64))
    before = torch.randn(96, 64, generator=generator)
    total = before.to(device)
    add_product(total, gradient.to(device), rows.to(device))
    assert weight_gradients._mixed_product(total.device, torch.bfloat16) is weight_gradients._in_one_kernel
    assert error(total.cpu(), before.double() + gradient.double().T @ rows.double()) < 1e-6
