"""Cross-entropy of selected rows under a vocabulary-parallel head, with the logits of one chunk in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


def vocabulary_parallel_nll(vocab_size: int) -> LogitsToNll:
    """Vocabulary-parallel cross-entropy in float32.

    Args:
        vocab_size: size before padding; padding columns get no probability.

    Returns:
        A function from this rank's logits `[m, V_padded / tensor]` and global targets `[m]` to float32 `[m]`. Every
        tensor-parallel rank gets the same values. Float32 logits are overwritten: Megatron's kernel works in place.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    def nll(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        first_column = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        padding = vocab_size - first_column
        if padding < logits.shape[-1]:
            is_padding = torch.arange(logits.shape[-1], device=logits.device) >= padding
            logits = logits.masked_fill(is_padding, float("-inf"))
        # The kernel takes [sequence, batch, vocabulary].
        return vocab_parallel_cross_entropy(logits.unsqueeze(1), targets.unsqueeze(1)).squeeze(1)

    return nll
