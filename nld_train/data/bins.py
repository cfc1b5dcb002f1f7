"""Bin packing of conversations into samples, which have room for so many tokens in each of two streams."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(
    clean: NDArray[np.integer[Any]], noisy: NDArray[np.integer[Any]], sequence_length: int, noisy_length: int
) -> list[list[int]]:
    """Packs conversations whole, the largest first: best-fit decreasing, sample by sample.

    A sample begins with the largest conversation that is left. Then follows, again and again, the largest one that
    fits among those that need more of the stream that has more room, so that both streams become full together:
    conversations with long answers meet conversations with long prompts. Best-fit decreasing that looks at sizes alone
    leaves 5 to 12 % of both streams empty where N is just large enough, this 1 %.

    Args:
        clean: tokens in the clean stream, `[n]`, at most L.
        noisy: tokens in the noisy stream, `[n]`, at most N.
        sequence_length: L.
        noisy_length: N; 0 where there is no noisy stream.

    Returns:
        Indices of the conversations of each sample.
    """
    sizes, noisy_sizes = clean.astype(np.int64), noisy.astype(np.int64)
    mostly_noisy = noisy_sizes * sequence_length > sizes * noisy_length
    streams = (
        _Conversations(sizes, noisy_sizes, np.flatnonzero(~mostly_noisy)),
        _Conversations(noisy_sizes, sizes, np.flatnonzero(mostly_noisy)),
    )
    capacities = sequence_length, max(1, noisy_length)
    samples: list[list[int]] = []
    while any(stream.sizes for stream in streams):
        rooms, sample = [sequence_length, noisy_length], list[int]()
        first = int(streams[1].largest / capacities[1] > streams[0].largest / capacities[0])
        while (found := _take(streams, rooms, first)) is not None:
            sample.append(found)
            first = int(rooms[1] * capacities[0] > rooms[0] * capacities[1])
        samples.append(sample)
    return samples


class _Conversations:
    """Conversations that need more of one stream than of the other, by their sizes in it.

    Args:
        sizes: tokens in the stream of which they need more.
        others: tokens in the other one.
        chosen: indices of the conversations.
    """

    def __init__(self, sizes: NDArray[np.int64], others: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        order = chosen[np.lexsort((others[chosen], sizes[chosen]))]
        self.sizes: list[int] = sizes[order].tolist()
        self.others: list[int] = others[order].tolist()
        self.indices: list[int] = order.tolist()

    @property
    def largest(self) -> int:
        """Size of the largest conversation that is left; 0 where none is."""
        return self.sizes[-1] if self.sizes else 0

    def take(self, room: int, other_room: int) -> tuple[int, int, int] | None:
        """Removes the largest conversation that fits; its two sizes and its index, or None."""
        position = bisect_right(self.sizes, room) - 1
        while position >= 0 and self.others[position] > other_room:
            position -= 1
        if position < 0:
            return None
        return self.sizes.pop(position), self.others.pop(position), self.indices.pop(position)


def _take(streams: tuple[_Conversations, _Conversations], rooms: list[int], first: int) -> int | None:
    """Index of a conversation that fits, of stream `first` or else of the other one; None where none fits.

    `rooms` are reduced by its sizes.
    """
    for stream in (first, 1 - first):
        if (found := streams[stream].take(rooms[stream], rooms[1 - stream])) is not None:
            rooms[stream] -= found[0]
            rooms[1 - stream] -= found[1]
            return found[2]
    return None
