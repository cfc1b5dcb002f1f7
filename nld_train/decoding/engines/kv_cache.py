"""The static KV cache of every engine: keys and values of committed text and of the current step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.engines.cycles import Cycles, FixedCycles, rounded_entries
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
        in_place: whether the tensors stay where they are when slots are freed, as graphs need it.
    """

    def __init__(self, slots: int, capacity: int, in_place: bool = False) -> None:
        self.slots, self.capacity = slots, capacity
        self._allocated, self._in_place = slots, in_place
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        # Of the current step: the first entry if it is the same for all slots, else the destinations, or in a fixed
        # step the row int64 `[a, 1]` and the entry int64 `[a, T]` of every token.
        self._start: int | None = None
        self._destinations: Destinations | None = None
        self._fixed: tuple[Tensor, Tensor] | None = None
        self._read: Tensor | None = None
        self._entries = 0

    def begin_step(self, step: Step, entries: int, device: torch.device) -> None:
        """Sets where `update` writes, and how many entries of each slot it returns, for all layers of a step.

        Raises:
            RuntimeError: the step does not fit into the cache.
        """
        self._entries = entries
        if step.entries is not None:
            self._begin_fixed(step)
            return
        needed = int((step.cached + step.counts).max())
        self._require(max(needed, entries))
        start, length = int(step.cached[0]), step.tokens.shape[1]
        aligned = step.slots is None and start + length <= self.capacity and bool((step.cached == start).all())
        self._start = start if aligned else None
        self._destinations = None if aligned else Destinations.of(step, device)
        self._fixed = None
        self._read = None if step.slots is None else step.slots.to(device)

    def _begin_fixed(self, step: Step) -> None:
        assert step.slots is None
        self._require(self._entries)
        rows, length = step.tokens.shape
        entries = step.cached[:, None] + torch.arange(length, device=step.cached.device)
        self._fixed = torch.arange(rows, device=step.cached.device)[:, None], entries
        self._start = self._destinations = self._read = None

    def _require(self, entries: int) -> None:
        if entries > self.capacity:
            raise RuntimeError(f"a step needs {entries} entries of a cache of {self.capacity}")

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the step's keys and values `[a, groups, T, head_dim]`; returns `[a, groups, entries, head_dim]`."""
        if layer not in self._layers:
            shape = (self._allocated, key.shape[1], self.capacity, key.shape[3])
            # Zeros: masked entries are still multiplied by zero, and uninitialised memory could be NaN.
            self._layers[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        keys, values = self._layers[layer]
        return self._written(keys, key), self._written(values, value)

    def keep_slots(self, slots: Tensor) -> None:
        """Keeps only these slots, int64 `[n]`, in this order."""
        self.slots = len(slots)
        if not self._in_place:
            self._allocated = self.slots
        for layer, (keys, values) in self._layers.items():
            slots = slots.to(keys.device)
            if self._in_place:
                for stored in (keys, values):
                    stored[: self.slots] = stored[slots]
            else:
                self._layers[layer] = (keys[slots], values[slots])

    def reallocated(self, slots: int, capacity: int) -> bool:
        """Empties the cache for other sequences; False if it has another size than these need.

        Old entries stay, since none is visible before it has been written again.
        """
        if not self._in_place or (self._allocated, self.capacity) != (slots, capacity):
            return False
        self.slots = slots
        return True

    def _written(self, stored: Tensor, new: Tensor) -> Tensor:
        if self._fixed is not None:
            rows, entries = self._fixed
            stored[rows, :, entries] = new.transpose(1, 2)
            return stored[: len(rows), :, : self._entries]
        stored = stored[: self.slots] if self._in_place else stored
        if self._start is not None:
            stored[:, :, self._start : self._start + new.shape[2]] = new
        elif self._destinations is not None:
            to = self._destinations
            stored[to.slots, :, to.entries] = new[to.rows, :, to.tokens]
        visible = stored[:, :, : self._entries]
        return visible if self._read is None else visible[self._read]


def allocated_cache(previous: KeyValueCache | None, slots: int, capacity: int, cycles: Cycles) -> KeyValueCache:
    """An empty cache of at least this size, the previous one if it fits: then its graphs stay valid."""
    if not isinstance(cycles, FixedCycles):
        return KeyValueCache(slots, capacity)
    capacity = rounded_entries(capacity)
    if previous is not None and previous.reallocated(slots, capacity):
        return previous
    cycles.reset()
    return KeyValueCache(slots, capacity, in_place=True)
