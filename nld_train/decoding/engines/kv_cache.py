"""The static KV cache of every engine: keys and values of committed text and of the current step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.engines.engine import Step


@dataclass(frozen=True)
class Destinations:
    """Where a step's keys and values are written, one element per real token. All int64 `[n]`.

    Attributes:
        rows: rows of the step.
        slots: slots of the cache.
        tokens: index of each token in its row.
        entries: entry of the slot.
    """

    rows: Tensor
    slots: Tensor
    tokens: Tensor
    entries: Tensor

    @classmethod
    def of(cls, step: Step, device: torch.device) -> Destinations:
        """The destinations of a step."""
        real = torch.arange(step.tokens.shape[1]) < step.counts[:, None]
        rows, tokens = real.nonzero(as_tuple=True)
        slots = rows if step.slots is None else step.slots[rows]
        entries = step.cached[rows] + tokens
        return cls(rows.to(device), slots.to(device), tokens.to(device), entries.to(device))


class KeyValueCache:
    """Per layer two tensors `[slots, groups, capacity, head_dim]`, allocated at the layer's first step.

    Args:
        slots: number of slots.
        capacity: entries of each slot.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        # Of the current step: the first entry if it is the same for all slots, else the destinations.
        self._start: int | None = None
        self._destinations: Destinations | None = None
        self._read: Tensor | None = None
        self._entries = 0

    def begin_step(self, step: Step, entries: int, device: torch.device) -> None:
        """Sets where `update` writes, and how many entries of each slot it returns, for all layers of a step.

        Raises:
            RuntimeError: the step does not fit into the cache.
        """
        needed = int((step.cached + step.counts).max())
        if max(needed, entries) > self.capacity:
            raise RuntimeError(f"a step needs {max(needed, entries)} entries of a cache of {self.capacity}")
        start, length = int(step.cached[0]), step.tokens.shape[1]
        aligned = step.slots is None and start + length <= self.capacity and bool((step.cached == start).all())
        self._start = start if aligned else None
        self._destinations = None if aligned else Destinations.of(step, device)
        self._read = None if step.slots is None else step.slots.to(device)
        self._entries = entries

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the step's keys and values `[a, groups, T, head_dim]`; returns `[a, groups, entries, head_dim]`."""
        if layer not in self._layers:
            shape = (self.slots, key.shape[1], self.capacity, key.shape[3])
            # Zeros: masked entries are still multiplied by zero, and uninitialised memory could be NaN.
            self._layers[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        keys, values = self._layers[layer]
        return self._written(keys, key), self._written(values, value)

    def keep_slots(self, slots: Tensor) -> None:
        """Keeps only these slots, int64 `[n]`, in this order."""
        self.slots = len(slots)
        self._layers = {
            layer: (keys[slots.to(keys.device)], values[slots.to(values.device)])
            for layer, (keys, values) in self._layers.items()
        }

    def _written(self, stored: Tensor, new: Tensor) -> Tensor:
        if self._start is not None:
            stored[:, :, self._start : self._start + new.shape[2]] = new
        elif self._destinations is not None:
            to = self._destinations
            stored[to.slots, :, to.entries] = new[to.rows, :, to.tokens]
        visible = stored[:, :, : self._entries]
        return visible if self._read is None else visible[self._read]
