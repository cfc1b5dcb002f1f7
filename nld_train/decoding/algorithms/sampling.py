"""From logits to tokens: one random stream per row, so that a row's text does not depend on its batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.options import DecodeOptions


class Sampler:
    """Draws tokens for the rows of a batch.

    Args:
        options: temperature, top-k, top-p and seeds.
        rows: numbers of the rows, in the order of all tensors here.
    """

    def __init__(self, options: DecodeOptions, rows: Sequence[int]) -> None:
        self.options = options
        self.greedy = options.temperature == 0
        # Drawn on the CPU: the same numbers on every device and on every rank.
        self._generators = [self._stream(row) for row in rows]

    def begin_row(self, place: int, row: int) -> None:
        """Gives a place to another row."""
        self._generators[place] = self._stream(row)

    def keep(self, places: Sequence[int]) -> None:
        """Forgets all rows but those at these places."""
        self._generators = [self._generators[place] for place in places]

    def at(self, places: Sequence[int]) -> Sampler:
        """A sampler for the rows at these places alone; it draws from the same streams."""
        part = copy.copy(self)
        part.keep(places)
        return part

    def _stream(self, row: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed_of(row))

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities `[..., V]` after temperature, top-k and top-p; a greedy sampler puts all on the argmax."""
        if self.greedy:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        logits = logits / self.options.temperature
        if 0 < self.options.top_k < logits.shape[-1]:
            smallest = logits.topk(self.options.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        probabilities = logits.softmax(-1)
        return probabilities if self.options.top_p == 1 else nucleus(probabilities, self.options.top_p)

    def uniform(self, wanted: Tensor) -> Tensor:
        """One number in [0, 1) for every True of bool `[a, T]` (CPU), from each row's own stream: float64 `[a, T]`."""
        numbers = torch.zeros(wanted.shape, dtype=torch.float64)
        for row, generator in enumerate(self._generators):
            count = int(wanted[row].sum())
            numbers[row, wanted[row]] = torch.rand(count, generator=generator, dtype=torch.float64)
        return numbers

    def draw(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """A token for every True of bool `[a, T]` (CPU) from logits `[a, T, V]`: int64 `[a, T]` on the CPU.

        Positions that are not wanted get an argmax, which nobody should read, and cost no randomness.
        """
        if self.greedy:
            return logits.argmax(-1).cpu()
        return pick(self.distribution(logits), self.uniform(wanted))


def pick(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Token at quantile `numbers` `[...]` of `probabilities` `[..., V]`, which need not sum to 1: int64 on the CPU."""
    heights = probabilities.double().cumsum(-1)
    targets = numbers.to(heights.device).unsqueeze(-1) * heights[..., -1:]
    found = torch.searchsorted(heights, targets, right=True).squeeze(-1)
    # A number that rounds up to the total would land beyond the last token that has any probability.
    last = (probabilities > 0).to(torch.int8).flip(-1).argmax(-1)
    return torch.minimum(found, probabilities.shape[-1] - 1 - last).cpu()


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose probabilities reach `top_p`, renormalised: `[..., V]`."""
    ordered, order = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)
