"""A graph without a GPU: the operations of a function are recorded, and a replay runs them again on the same tensors.

As with a CUDA graph, Python does not run in a replay. What it read, chose or made during the recording stays as it was,
and a tensor from outside is read at its address, whatever it holds by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations with which the host reads values or whose result has a shape that depends on values.
_READING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "repeat_interleave.Tensor",
)
_INDEXING = ("aten.index.", "aten.index_put", "aten._index_put_impl_", "aten._unsafe_index")


class Tape(TorchDispatchMode):
    """A `cycles.Graph`: records while it is entered.

    Attributes:
        names: of the recorded operations, which compute something: views are not among them.
        outside: tensors that the function read or changed and had not made itself, by the address of their storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.names: list[str] = []
        self.outside: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self._refuse(str(operation), args)
        result = operation(*args, **kwargs)
        inputs = {address(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.outside |= {where: leaf for where, leaf in inputs.items() if where not in self._made}
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        changes = any(argument.alias_info and argument.alias_info.is_write for argument in operation._schema.arguments)
        new = [leaf for leaf in results if leaf.numel() and address(leaf) not in inputs]
        if changes or new:
            # Sizes may be given as lists that the caller changes later.
            self._recorded.append((operation, args, kwargs, [] if changes else results))
            self.names.append(str(operation))
            self._made |= {address(leaf) for leaf in new}
        return result

    def _refuse(self, name: str, args: tuple) -> None:
        """Raises where a capture on a GPU would."""
        reads = any(reading in name for reading in _READING) and not self._on_the_host(args[0])
        if any(name.startswith(indexing) for indexing in _INDEXING):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            # A single number where a mask is true needs no indices.
            reads = bool(masks) and not (len(args) > 2 and args[2].numel() == 1)
        if reads:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")

    def _on_the_host(self, tensor: Tensor) -> bool:
        """Whether it is a number that Python made, such as the handle of a layer context, not part of a buffer."""
        alone = tensor.untyped_storage().nbytes() == tensor.element_size()
        return alone and address(tensor) not in self._made

    def replay(self) -> None:
        """Computes every recorded operation again, into the tensors that it made then."""
        for operation, args, kwargs, results in self._recorded:
            again = [leaf for leaf in tree_leaves(operation(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for old, new in zip(results, again, strict=bool(results)):
                old.copy_(new)


class Tapes:
    """A `cycles.GraphMaker`.

    Attributes:
        tapes: all that were recorded.
    """

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def capture(self, function: Callable[[], None]) -> Tape:
        """Records; what the function changes outside is as before it, since a capture computes nothing."""
        tape = Tape()
        with tape:
            function()
        self.tapes.append(tape)
        return tape


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
