"""The causal kernels of torch for one stream; joint attention is compared with the fastest of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

# The kernel of a run: torch's choice for whole samples, `varlen_attn` for packed ones on CUDA.
CAUSAL = "causal"
FLASH, CUDNN, FLASH_3 = "causal, flash", "causal, cuDNN", "causal, FlashAttention-3"
NAMES = (CAUSAL, FLASH, CUDNN, FLASH_3)
# The name of FlashAttention-3 in `torch.nn.attention`.
_THIRD = "FA3"


@dataclass(frozen=True)
class Kernel:
    """The setting under which `causal.attend` uses one kernel.

    Attributes:
        backend: backend of SDPA; None for torch's choice.
        third: whether the FlashAttention backend is FlashAttention-3.
    """

    backend: SDPBackend | None = None
    third: bool = False

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Forward and backward passes inside use this kernel, or raise RuntimeError if it does not support them."""
        only = nullcontext() if self.backend is None else sdpa_kernel(self.backend)
        with _third_version() if self.third else nullcontext(), only:
            yield


def candidates(device: torch.device, packed: bool) -> tuple[dict[str, Kernel], dict[str, str]]:
    """The kernels that can be measured, by name, and for each of the others the reason why not."""
    found, missing = {CAUSAL: Kernel()}, {}
    # Packed samples use `varlen_attn`, which has FlashAttention only; on a CPU they are computed by document.
    if not packed:
        found[FLASH] = Kernel(SDPBackend.FLASH_ATTENTION)
    if device.type != "cuda":
        return found, dict.fromkeys((CUDNN, FLASH_3), "not measured: needs CUDA")
    if not packed:
        found[CUDNN] = Kernel(SDPBackend.CUDNN_ATTENTION)
    if (reason := _third_is_missing()) is None:
        found[FLASH_3] = Kernel(SDPBackend.FLASH_ATTENTION, third=True)
    else:
        missing[FLASH_3] = reason
    return found, missing


def _third_is_missing() -> str | None:
    """Why FlashAttention-3 cannot be measured, or None."""
    listed: Any = getattr(attention, "list_flash_attention_impls", list)
    if _THIRD not in listed():
        return "this version of torch cannot switch to it"
    return "not installed" if find_spec("flash_attn_interface") is None else None


@contextmanager
def _third_version() -> Iterator[None]:
    """Inside, FlashAttention is FlashAttention-3, for SDPA and for `varlen_attn`."""
    attention.activate_flash_attention_impl(_THIRD)
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()
