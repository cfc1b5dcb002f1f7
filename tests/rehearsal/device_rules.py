"""What the pretended device allows, refuses and counts. Each function is called in one process that pretends."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pretended import LEDGER, install
from torch.nn.attention.flex_attention import create_block_mask

Rule = Callable[[], None]


def names() -> list[str]:
    """Of the rules."""
    return [name for name, value in globals().items() if name.startswith("rule_") and callable(value)]


def outcomes() -> dict[str, str]:
    """Checks every rule: an empty text, or what went wrong."""
    install()
    found = {}
    for name in names():
        LEDGER.take()
        try:
            globals()[name]()
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
        LEDGER.capturing = False
    return found


def figures() -> tuple[int, int, int]:
    """Synchronisations, copies to the device and slow ones among them, since the last question."""
    report = LEDGER.take()
    return report.syncs, report.copies, report.slow_copies


def numbers() -> torch.Tensor:
    return torch.arange(6.0, device="cuda").view(2, 3)


def rule_devices_do_not_mix() -> None:
    on_device = numbers()
    for mixed in (
        lambda: on_device + torch.ones(2, 3),
        lambda: torch.cat([on_device, torch.ones(1, 3)]),
        lambda: torch.stack([on_device[0, 0], torch.tensor(1.0)]),
        lambda: torch.ones(6)[on_device.long().flatten()],
        lambda: torch.nn.functional.linear(torch.ones(1, 3), on_device),
    ):
        with pytest.raises(RuntimeError, match="all tensors to be on the same device"):
            mixed()
    assert float((on_device * torch.tensor(2.0)).sum()) == 30  # without dimensions it is a number
    with pytest.raises(TypeError, match="to numpy"):
        np.asarray(on_device)


def rule_reading_synchronises() -> None:
    on_device = numbers()
    for read in (
        lambda: on_device.sum().item(),
        lambda: on_device.tolist(),
        lambda: bool(on_device[0, 0] == 0),
        lambda: on_device.cpu(),
        lambda: on_device[on_device > 2],
        lambda: on_device.nonzero(),
        lambda: torch.repeat_interleave(on_device[0], on_device[1].long()),
        lambda: torch.cuda.synchronize(),
        lambda: f"{on_device.sum():.1f}",
    ):
        figures()
        read()
        assert figures() == (1, 0, 0), read
    on_device.index_fill_(1, torch.zeros(1, dtype=torch.int64, device="cuda"), 0.0)
    on_device[on_device > 2] = 0.0  # a `masked_fill`
    on_device.topk(2), on_device.argmax(), torch.where(on_device > 1, on_device, 0.0)
    assert figures() == (0, 0, 0)
    on_device[on_device > 2] = on_device[0, 0]
    assert figures() == (1, 0, 0)


def rule_copies_to_the_device() -> None:
    pinned = torch.ones(2, 3).pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert not torch.ones(2).is_pinned()
    for copy, slow in (
        (lambda: pinned.to("cuda", non_blocking=True), 0),
        (lambda: pinned.T.cuda(non_blocking=True), 0),
        (lambda: torch.empty(2, 3, device="cuda").copy_(pinned, non_blocking=True), 0),
        (lambda: torch.zeros(3, pin_memory=True).to(numbers().device, non_blocking=True), 0),
        (lambda: pinned.to("cuda"), 1),
        (lambda: torch.ones(2, 3).to("cuda", non_blocking=True), 1),
        (lambda: pinned.to("cuda", torch.bfloat16, non_blocking=True), 1),  # the host converts first
        (lambda: pinned[:, :2].to("cuda", non_blocking=True), 1),  # with gaps
        (lambda: torch.tensor([1, 2], device="cuda"), 1),
        (lambda: torch.as_tensor(np.ones(2), device="cuda"), 1),
        (lambda: numbers()[:, torch.tensor([0, 1])], 1),
    ):
        figures()
        copy()
        assert figures() == (0, 1, slow), copy
    torch.full((3,), 2.0, device="cuda")
    assert figures() == (0, 0, 0)


def rule_pinned_memory_is_not_written_too_early() -> None:
    pinned = torch.ones(3).pin_memory()
    on_device = pinned.to("cuda", non_blocking=True)
    pinned[0] = 5
    with pytest.raises(RuntimeError, match="while a non-blocking copy read it"):
        on_device.sum().item()
    event = torch.cuda.Event()
    on_device = pinned.to("cuda", non_blocking=True)
    event.record()
    event.synchronize()
    pinned[0] = 7
    assert on_device.tolist() == [5, 1, 1]


def rule_results_arrive_when_the_host_has_waited() -> None:
    event = torch.cuda.Event()
    arriving = numbers().to("cpu", non_blocking=True)
    event.record()
    assert arriving.isnan().all()
    event.synchronize()
    assert arriving.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert figures() == (1, 0, 0)


def rule_a_graph_does_its_operations_again() -> None:
    given = torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = given * 2
        result = (doubled + 1).view(1, 3)
    given.fill_(2.0)
    assert result.isnan().all()  # a capture computes nothing
    graph.replay()
    assert result.tolist() == [[5, 5, 5]]
    with pytest.raises(RuntimeError, match="when stream is capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        result.sum().item()


def rule_modules_move_with_their_attributes() -> None:
    layer = torch.nn.Linear(3, 2)
    layer.weight.marked = True  # type: ignore[attr-defined]
    expected = layer(torch.ones(3))
    layer.to("cuda")
    assert layer.weight.is_cuda
    assert layer.weight.marked
    assert isinstance(layer.weight, torch.nn.Parameter)
    layer(torch.ones(3).cuda()).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_cuda
    layer.bfloat16()
    assert layer.weight.type() == "torch.cuda.BFloat16Tensor"
    torch.testing.assert_close(layer.cpu().float()(torch.ones(3)), expected, atol=1e-2, rtol=1e-2)


def rule_gradients_pass_between_devices() -> None:
    weights = torch.ones(3, requires_grad=True)
    (weights.to("cuda") * numbers()).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [3, 5, 7]


def rule_a_block_mask_is_made_without_copies() -> None:
    documents = torch.arange(256, device="cuda")[None] // 100
    figures()
    mask = create_block_mask(lambda b, h, q, k: documents[b, q] == documents[b, k], None, None, 256, 256, device="cuda")
    assert mask.kv_indices.is_cuda
    assert figures() == (0, 0, 0)


def rule_memory_is_counted() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    first = torch.ones(1000, device="cuda")
    second = (first * 2).view(10, 100)
    assert torch.cuda.memory_allocated() - before == 8000
    del first, second
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before == 8000


def rule_unwritten_memory_is_not_a_number() -> None:
    assert torch.empty(3, device="cuda").isnan().all()
    assert numbers().new_empty(2).isnan().all()
    assert torch.empty_like(numbers()).isnan().all()
