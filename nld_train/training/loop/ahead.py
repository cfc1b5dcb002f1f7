"""The inputs of a pass, each prepared while the one before it is computed.

Preparing an input is a copy to the device and a few kernels (angles, masks). On CUDA they run on a stream of their own,
beside the kernels of the micro-batch that is computed, and the host has issued those before it prepares the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nld_train.model import streams
from nld_train.profiling import profiled


class PassInput(Protocol):
    """The input of a forward pass."""

    @property
    def tokens(self) -> Tensor:
        """int64 `[b, S]`."""

    @property
    def handle(self) -> Tensor:
        """Finds the `StreamContext`."""


Input = TypeVar("Input", bound=PassInput)


class PreparedAhead(Generic[Input]):
    """The inputs of a pass, in the order of their micro-batches.

    Args:
        makers: make one input each.
        shape: `(b, S)` of the tokens, the same in all of them.
        device: of this process.
    """

    def __init__(self, makers: Sequence[Callable[[], Input]], shape: tuple[int, int], device: torch.device) -> None:
        self.shape = shape
        self._makers = makers
        self._device = device
        self._made: dict[int, tuple[Input, Any]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._makers)

    def get(self, number: int) -> Input:
        """The input of a micro-batch. What is issued to the current stream next runs after its preparation."""
        while self._next <= number:
            self.prepare_next()
        item, prepared = self._made[number]
        if prepared is not None:
            torch.cuda.current_stream().wait_event(prepared)
        return item

    def prepare_next(self) -> None:
        """Prepares the first input that has not been prepared, if there is one."""
        if self._next == len(self):
            return
        with profiled("micro-batches"):
            self._prepare(self._makers[self._next])
        self._next += 1

    def _prepare(self, make: Callable[[], Input]) -> None:
        if self._device.type == "cuda":
            side = _side_stream(self._device)
            # Memory that an earlier input has released may still be read by kernels that have been issued.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                item = make()
            self._made[self._next] = item, side.record_event()
        else:
            self._made[self._next] = make(), None

    def release_before(self, number: int) -> None:
        """Drops the inputs of earlier micro-batches and their contexts, which no later pass reads."""
        for earlier in [each for each in self._made if each < number]:
            streams.unregister(self._made.pop(earlier)[0].handle)


@cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


class Cursor(Generic[Input]):
    """Megatron's data iterator of one chunk of the model: it takes each input once.

    Args:
        inputs: which all chunks of this rank share.
        releases: whether an input is not needed any more when this chunk takes the next one.
    """

    def __init__(self, inputs: PreparedAhead[Input], releases: bool) -> None:
        self._inputs = inputs
        self._releases = releases
        self._number = 0

    def take(self) -> Input:
        """The input of the chunk's next micro-batch."""
        if self._releases:
            self._inputs.release_before(self._number)
        item = self._inputs.get(self._number)
        self._number += 1
        return item

    def prepare_next(self) -> None:
        """To be called when the forward pass of the input that was taken has been issued."""
        self._inputs.prepare_next()
