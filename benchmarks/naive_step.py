"""The straightforward joint step, as in public implementations.

It differs from this project's step in three points only: keys and values are repeated for every query head, each layer
makes its own mask, and head and cross-entropy run over all 2L positions at once, including unsupervised ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stepper import Stepper
from benchmarks.timing import extra_memory
from nld_train.data.collate import select_rows
from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll
from nld_train.masking.visibility import dense_mask
from nld_train.model.attention import flex
from nld_train.model.head import added_product, gradients_added
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.streams import StreamContext
from nld_train.training.loop.optimizer import unwrap


@contextmanager
def straightforward(stepper: Stepper, on: bool) -> Iterator[None]:
    """Steps inside use the straightforward design, if `on`."""
    chunks = [unwrap(chunk) for chunk in stepper.model] if on else []
    cores = [layer.self_attention.core_attention for chunk in chunks for layer in chunk.decoder.layers]
    before, placement = [core.attend for core in cores], stepper.placement
    try:
        if on:
            stepper.placement = replace(placement, attention=None)  # makes no mask ahead
        for core in cores:
            core.attend = attend
        for chunk in chunks:
            setattr(chunk, "forward", MethodType(forward, chunk))  # noqa: B010 (a method, to mypy)
        yield
    finally:
        stepper.placement = placement
        for core, attention in zip(cores, before, strict=True):
            core.attend = attention
        for chunk in chunks:
            del chunk.forward


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Attention with repeated keys and a mask per layer; arguments and result as of `dense.attend`."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
    if not query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(context.layout))
    mask = flex.make_mask(context.layout, query.device)
    output: Tensor = flex.kernel(query.device)(query, key, value, block_mask=mask)
    return output


def forward(
    self: Ministral3Model,
    tokens: Tensor,
    streams: Tensor,
    rows: Tensor,
    targets: Tensor,
    readout: Any = None,
    measured: int = 0,
    pictures: Any = None,
    image_index: Tensor | None = None,
) -> Tensor:
    """The model's pass on one process, with the logits of all positions."""
    assert readout is None
    assert measured == 0
    assert pictures is None
    assert image_index is None
    hidden = self.decoder(hidden_states=self._embed(tokens), attention_mask=streams)
    return nll_of_all(hidden.flatten(0, 1), rows, targets, self._head)


def nll_of_all(hidden: Tensor, rows: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Cross-entropy of every position `[S * b, h]`, of which the supervised ones are then selected: float32 `[n]`."""
    logits = head(hidden).float()
    every = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device).index_copy(0, rows, targets)
    return F.cross_entropy(logits, every, reduction="none").index_select(0, rows)


def head_memory(stepper: Stepper, straightforward: bool) -> int:
    """Bytes of head and loss of one micro-batch, forward and backward, beyond the hidden states."""
    model = unwrap(stepper.model[-1])
    samples = stepper.samples["joint"][0]
    found = select_rows(samples, two_streams=True)
    rows, targets = found.index.to(stepper.device), found.targets.to(stepper.device)
    positions = 2 * samples["supervised"].numel()
    hidden = torch.randn(positions, model.config.hidden_size, device=stepper.device).to(stepper.dtype).requires_grad_()
    # A detached copy, with a gradient buffer of its own.
    weight = model.output_layer.weight.detach().requires_grad_()
    setattr(weight, "main_grad", torch.zeros(weight.shape, device=weight.device))  # noqa: B010 (as Megatron does)

    def head(some: Tensor) -> Tensor:
        return some @ weight.T

    def whole_pass() -> None:
        if straightforward:
            nll = nll_of_all(hidden, rows, targets, head)
        else:
            scored = vocabulary_parallel_nll(model.real_vocab_size)
            selected, added = (
                gradients_added(hidden.index_select(0, rows), weight),
                partial(added_product, weight=weight),
            )
            nll = chunked_nll(selected, targets, added, scored, model.chunk_rows)
        torch.autograd.grad(nll.sum(), [hidden, weight])

    whole_pass()
    return extra_memory(whole_pass, stepper.device)
