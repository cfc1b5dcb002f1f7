"""How Megatron-Core is imported where that takes longer than what is then done with it."""

from __future__ import annotations

import sys
from typing import Any


def import_megatron() -> None:
    """Imports Megatron-Core; where there is no GPU, without torch's compiler, a third of the seconds that it takes.

    Megatron's decorators ask torch for compiled functions while its modules are read, which loads the compiler whether
    or not one of them is ever called. On a CPU the functions stay what they are written as.
    """
    import torch

    if "megatron.core" in sys.modules or torch.cuda.is_available():
        return
    compiling = torch.compile
    torch.compile = _as_written  # type: ignore[assignment]
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = compiling


def _as_written(function: Any = None, **_: Any) -> Any:
    """Stands in for `torch.compile`, as a function and as a decorator."""
    return _as_written if function is None else function
