"""What libraries hold of torch that `moves` and `runtime` cannot replace, and kernels that a CPU does not have."""

from __future__ import annotations

import inspect
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretended.ledger import LEDGER
from pretended.tensor import CUDA, CudaTensor, note_vmap

_MASK_TENSORS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices")
_HALF = (torch.bfloat16, torch.float16)


def install() -> None:
    """Patches Megatron, torch's compiler and what it compiles, FlexAttention and the kernel for packed documents."""
    import torch._dynamo

    torch._dynamo.config.disable = True  # compiled code would not come to the wrapper
    _patch_megatron()
    _patch_vmap()
    _patch_compiled()
    _patch_flex()
    _patch_varlen()


def _patch_megatron() -> None:
    import megatron.core.tensor_parallel.random as megatron_random
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    patched: Any = megatron_random
    patched._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    patched._lazy_call = lambda call, **__: call()
    patched._lazy_init = lambda: None
    # Its default argument is the unpatched `torch.empty`, bound at import.
    initialize: Any = ShardedTensor.init_data
    initialize.__defaults__ = (torch.empty,)


def _patch_vmap() -> None:
    import torch._functorch.apis as apis

    patched: Any = apis
    patched.vmap_impl = note_vmap(apis.vmap_impl)


def _patch_compiled() -> None:
    from nld_train.model.compiled import CompiledFunction

    patched: Any = CompiledFunction
    patched.__call__ = lambda self, *arguments, **named: self._function(*arguments, **named)


def _patch_flex() -> None:
    from nld_train.model.attention import flex

    patched: Any = flex
    patched._compiled = lambda: flex_kernel


def flex_kernel(
    query: Any, key: Any, value: Any, block_mask: Any = None, enable_gqa: bool = False, return_aux: Any = None
) -> Any:
    """FlexAttention's compiled kernel, by its mask function on whole tensors."""
    _one_half_type("flex_attention", query, key, value)
    for name in _MASK_TENSORS:
        held = getattr(block_mask, name)
        if held is not None and not isinstance(held, CudaTensor):
            raise RuntimeError(f"flex_attention: {name} of the block mask is on the CPU")
    LEDGER.operation("flex_attention")
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert block_mask.seq_lengths == (queries, keys), (block_mask.seq_lengths, queries, keys)
    with LEDGER.paused():
        mask = _whole_mask(block_mask, queries, keys).expand(batch, 1, queries, keys)
        if return_aux is not None:
            return _with_normaliser(query, key, value, mask)
        output: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=enable_gqa)
    return output


def _with_normaliser(query: Any, key: Any, value: Any, mask: Tensor) -> tuple[Tensor, Any]:
    """Output and log-sum-exp; zeros and minus infinity for queries that see nothing."""
    key, value = (heads.repeat_interleave(query.shape[1] // heads.shape[1], dim=1) for heads in (key, value))
    blind = ~mask.any(dim=-1)
    scores = (query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(
        ~(mask | blind.unsqueeze(-1)), float("-inf")
    )
    output = (scores.softmax(dim=-1).to(value.dtype) @ value).masked_fill(blind.unsqueeze(-1), 0)
    return output, SimpleNamespace(lse=scores.logsumexp(dim=-1).masked_fill(blind, float("-inf")))


def _whole_mask(block_mask: Any, queries: int, keys: int) -> Tensor:
    """Bool `[b, 1, queries, keys]`, b 1 or the rows of the block mask."""
    query = torch.arange(queries, device=CUDA)[:, None]
    key = torch.arange(keys, device=CUDA)[None, :]
    head = torch.zeros((), dtype=torch.int64, device=CUDA)
    rows = block_mask.kv_num_blocks.shape[0]
    return torch.stack([block_mask.mask_mod(head + row, head, query, key) for row in range(rows)])[:, None]


def _patch_varlen() -> None:
    import torch.nn.attention.varlen as varlen

    known = inspect.signature(varlen.varlen_attn)

    def kernel(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, **named: Any
    ) -> Tensor:
        known.bind(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **named)
        return _attend_documents(query, key, value, cu_seq_q, cu_seq_k, max(max_q, max_k))

    patched: Any = varlen
    patched.varlen_attn = kernel
    described: Any = kernel
    described.__signature__ = known


def _attend_documents(query: Any, key: Any, value: Any, ends: Any, key_ends: Any, longest: int) -> Tensor:
    _one_half_type("varlen_attn", query, key, value)
    for cumulative in (ends, key_ends):
        assert isinstance(cumulative, CudaTensor), "varlen_attn: borders are on the CPU"
        assert cumulative.dtype == torch.int32, f"varlen_attn: borders are {cumulative.dtype}"
    borders, repeats = ends.inner.tolist(), query.shape[1] // key.shape[1]
    assert borders == key_ends.inner.tolist()
    assert max(b - a for a, b in pairwise(borders)) <= longest
    LEDGER.operation("varlen_attn")
    with LEDGER.paused():
        parts = [
            F.scaled_dot_product_attention(
                *(
                    heads[start:stop].transpose(0, 1).repeat_interleave(times, 0)[None]
                    for heads, times in ((query, 1), (key, repeats), (value, repeats))
                ),
                is_causal=True,
            )[0].transpose(0, 1)
            for start, stop in pairwise(borders)
        ]
        return torch.cat(parts)


def _one_half_type(name: str, *tensors: Any) -> None:
    types = {tensor.dtype for tensor in tensors}
    if any(not isinstance(tensor, CudaTensor) for tensor in tensors):
        raise RuntimeError(f"{name}: a tensor is on the CPU")
    if len(types) > 1 or not types <= {*_HALF, torch.float32}:
        raise RuntimeError(f"{name}: types are {types}")
