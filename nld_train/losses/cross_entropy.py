"""Cross-entropy of selected rows under a vocabulary-parallel head, with the logits of one chunk in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nld_train.errors import UserError

LogitsToNll = Callable[[Tensor, Tensor], Tensor]


def chunked_nll(
    rows: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    nll_of_logits: LogitsToNll,
    chunk_rows: int,
) -> Tensor:
    """Negative log-likelihood of each row's target; logits exist for `chunk_rows` rows at a time.

    With more than one chunk, logits are recomputed in the backward pass: memory is `chunk_rows x V` (divided by the
    tensor-parallel size), at the cost of one more product with the head.

    Args:
        rows: hidden states `[n, h]` of the supervised rows, after the final norm.
        targets: int64 `[n]`.
        head: maps `[m, h]` to this rank's logits `[m, V / tensor]`.
        nll_of_logits: maps logits `[m, V / tensor]` and targets `[m]` to float32 `[m]`.
        chunk_rows: rows per chunk; 0 means all rows at once.

    Returns:
        float32 `[n]`, in nats.
    """

    def nll(some_rows: Tensor, some_targets: Tensor) -> Tensor:
        return nll_of_logits(head(some_rows), some_targets)

    if chunk_rows <= 0 or len(rows) <= chunk_rows:
        return nll(rows, targets)
    chunks = zip(rows.split(chunk_rows), targets.split(chunk_rows), strict=True)
    return torch.cat([checkpoint(nll, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def vocabulary_parallel_nll(vocab_size: int, kernel: str = "chunked") -> LogitsToNll:
    """Vocabulary-parallel cross-entropy in float32.

    Args:
        vocab_size: size before padding; padding columns get no probability.
        kernel: a name of `KERNELS`.

    Returns:
        A function from this rank's logits `[m, V_padded / tensor]` and global targets `[m]` to float32 `[m]`. Every
        tensor-parallel rank gets the same values. Float32 logits are overwritten: Megatron's kernel works in place.
    """
    from megatron.core import parallel_state

    group, score = parallel_state.get_tensor_model_parallel_group(), KERNELS[kernel]

    def nll(logits: Tensor, targets: Tensor) -> Tensor:
        padding = vocab_size - group.rank() * logits.shape[-1]
        if padding < logits.shape[-1]:
            is_padding = torch.arange(logits.shape[-1], device=logits.device) >= padding
            logits = logits.masked_fill(is_padding, float("-inf"))
        # The kernels take [sequence, batch, vocabulary].
        return score(logits.unsqueeze(1), targets.unsqueeze(1), group).squeeze(1)

    return nll


def _megatron(logits: Tensor, targets: Tensor, group: Any) -> Tensor:
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    del group  # it takes Megatron's own
    return vocab_parallel_cross_entropy(logits.float(), targets)


def _megatron_compiled(logits: Tensor, targets: Tensor, group: Any) -> Tensor:
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    if not len(logits):
        # It cannot divide a tensor of no rows; these have the same shape, and a gradient.
        return logits.float().sum(dim=-1)
    return fused_vocab_parallel_cross_entropy(logits, targets, group)


def _transformer_engine(logits: Tensor, targets: Tensor, group: Any) -> Tensor:
    from megatron.core.extensions.transformer_engine import te_parallel_cross_entropy

    # What can be captured in a CUDA graph has no host synchronisation.
    return te_parallel_cross_entropy(logits, targets, group, is_cg_capturable=True)


# From logits `[m, 1, V / tensor]`, targets `[m, 1]` and the tensor-parallel group to float32 `[m, 1]`.
KERNELS: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "chunked": _megatron,
    "fused": _megatron_compiled,
    "transformer_engine": _transformer_engine,
}


def resolve_head(head: str, device: torch.device, dtype: torch.dtype) -> str:
    """A name of `KERNELS`, for the key `execution.head`.

    Raises:
        UserError: the kernel does not run here.
    """
    if head == "auto":
        return "chunked"
    if head == "fused" and dtype != torch.bfloat16:
        raise UserError("execution.head: fused has gradients in bf16 only, and the precision here is fp32; use chunked")
    if head == "transformer_engine" and (device.type != "cuda" or find_spec("transformer_engine") is None):
        raise UserError(
            "execution.head: transformer_engine needs a CUDA device and the package transformer-engine; install "
            "nld-train[h100] or use chunked"
        )
    return head
