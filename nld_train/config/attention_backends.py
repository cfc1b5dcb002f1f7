"""The attention backends and what each of them can do. Imports no torch: a configuration is checked anywhere.

To add one, write a module with a function like `model.attention.dense.attend` and give it an entry in
`ATTENTION_BACKENDS`. The key `execution.attention` selects it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

AUTO = "auto"


@dataclass(frozen=True)
class AttentionBackend:
    """One implementation of attention over two streams.

    Attributes:
        attend: the function, as `module:name`; imported when a model is built.
        context_parallel: whether its queries may be one context-parallel shard of the streams.
        selected_keys: whether its keys may be a selection, as a context-parallel rank has them (`StreamContext.keys`);
            otherwise zeros stand for the others.
        causal_blocks: whether it masks causally inside blocks (`StreamLayout.causal_blocks`) and takes blocks with an
            offset per sample, as the passes of a drafter stage need.
        runs_on: device types of its forward pass.
        trains_on: device types of its backward pass.
        default_on: device types for which `execution.attention=auto` selects it.
    """

    attend: str
    context_parallel: bool = False
    selected_keys: bool = False
    causal_blocks: bool = True
    runs_on: tuple[str, ...] = ("cuda", "cpu")
    trains_on: tuple[str, ...] = ("cuda", "cpu")
    default_on: tuple[str, ...] = ()


_PACKAGE = "nld_train.model.attention"

ATTENTION_BACKENDS: dict[str, AttentionBackend] = {
    "flex": AttentionBackend(
        f"{_PACKAGE}.flex:attend",
        context_parallel=True,
        selected_keys=True,
        trains_on=("cuda",),
        default_on=("cuda",),
    ),
    "split": AttentionBackend(f"{_PACKAGE}.split:attend", trains_on=("cuda",)),
    "decomposed": AttentionBackend(f"{_PACKAGE}.decomposed:attend"),
    "chunked": AttentionBackend(f"{_PACKAGE}.chunked:attend", context_parallel=True, default_on=("cpu",)),
    "dense": AttentionBackend(f"{_PACKAGE}.dense:attend", context_parallel=True),
}


def default_backend(device_type: str) -> str:
    """Name of the backend that `auto` selects on a device type; that of the CPU for any type other than CUDA."""
    known = "cuda" if device_type == "cuda" else "cpu"
    return next(name for name, backend in ATTENTION_BACKENDS.items() if known in backend.default_on)


def names_of(condition: Callable[[AttentionBackend], bool]) -> str:
    """The backends that meet a condition, for a message: `flex, chunked or dense`."""
    return listed([name for name, backend in ATTENTION_BACKENDS.items() if condition(backend)])


def listed(names: list[str]) -> str:
    """Names as words of a sentence: `flex, chunked or dense`."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
