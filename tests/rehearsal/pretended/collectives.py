"""Process groups that say `nccl` and are gloo's: refuse what NCCL refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

_gloo: set[str] = set()  # names of the groups that were asked for as gloo's


def check(name: str, args: tuple[Any, ...]) -> None:
    """Called for each collective with a tensor of the device among its tensors.

    Raises:
        RuntimeError: NCCL would not take one of them.
    """
    for tensor in (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)):
        if not tensor.is_cuda:
            raise RuntimeError(f"{name}: No backend type associated with device type cpu")
        if not tensor.is_contiguous():
            raise RuntimeError(f"{name}: Tensors must be contiguous, and one of shape {tuple(tensor.shape)} is not")


def install() -> None:
    """Makes gloo's groups where NCCL's are asked for, and has them called so."""
    initialize, new_group, get_backend = dist.init_process_group, dist.new_group, dist.get_backend

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        initialize(_real(backend), *args, **kwargs)

    def new(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        group = new_group(*args, backend=_real(backend), **kwargs)
        if backend == "gloo" and isinstance(group, dist.ProcessGroup):
            _gloo.add(group.group_name)
        return group

    def backend_of(group: Any = None) -> str:
        name: str = get_backend(group)
        return "nccl" if _pretends(group) else name

    def object_device(group: Any = None) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if _pretends(group) else torch.device("cpu")

    modules: tuple[Any, ...] = (dist, dist.distributed_c10d)
    for module in modules:
        module.init_process_group, module.new_group, module.get_backend = init_process_group, new, backend_of
    c10d: Any = dist.distributed_c10d
    c10d._get_object_coll_device = object_device
    c10d._get_pg_default_device = object_device
    _refuse_cpu_tensors()


def _real(backend: str | None) -> str | None:
    return None if backend is None else backend.replace("nccl", "gloo")


def _pretends(group: Any) -> bool:
    return (group or dist.group.WORLD).group_name not in _gloo


def _refuse_cpu_tensors() -> None:
    """Collectives over CPU tensors alone do not come to `check`."""
    names = "all_reduce broadcast reduce all_gather all_gather_into_tensor reduce_scatter_tensor send recv isend irecv"
    c10d: Any = dist.distributed_c10d
    for name in names.split():
        refusing = _refusing(getattr(dist, name))
        setattr(dist, name, refusing)
        setattr(c10d, name, refusing)


def _refusing(collective: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if _pretends(kwargs.get("group") or next((a for a in args if isinstance(a, dist.ProcessGroup)), None)):
            check(collective.__name__, tuple(tree_leaves((args, kwargs))))
        return collective(*args, **kwargs)

    run.__name__ = collective.__name__
    return run
