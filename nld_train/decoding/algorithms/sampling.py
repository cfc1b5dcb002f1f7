"""Samples tokens from logits, with one random stream per sequence, so that a text does not depend on its batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.options import DecodeOptions


class TokenSampling:
    """Samples tokens from logits for the active sequences of a batch.

    Args:
        options: temperature, top-k, top-p and seeds.
        sequences: numbers of the active sequences, in the order of all tensors here.
    """

    def __init__(self, options: DecodeOptions, sequences: Sequence[int]) -> None:
        self.options = options
        self.greedy = options.temperature == 0
        # On the CPU, so that the numbers are the same on every device and on every rank.
        self._generators = [self._stream(sequence) for sequence in sequences]

    def admit(self, slot: int, sequence: int) -> None:
        """Assigns a slot to another sequence."""
        self._generators[slot] = self._stream(sequence)

    def keep_slots(self, slots: Sequence[int]) -> None:
        """Keeps only the streams of these slots."""
        self._generators = [self._generators[slot] for slot in slots]

    def at(self, slots: Sequence[int]) -> TokenSampling:
        """Sampling for the sequences in these slots only, from the same streams."""
        part = copy.copy(self)
        part.keep_slots(slots)
        return part

    def _stream(self, sequence: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed_of(sequence))

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities `[..., V]` after temperature, top-k and top-p; one-hot at the argmax where greedy."""
        if self.greedy:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        logits = logits / self.options.temperature
        if 0 < self.options.top_k < logits.shape[-1]:
            smallest = logits.topk(self.options.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        probabilities = logits.softmax(-1)
        return probabilities if self.options.top_p == 1 else nucleus(probabilities, self.options.top_p)

    def uniform(self, needed: Tensor) -> Tensor:
        """One number in [0, 1) for every True of bool `[a, T]` (CPU), from each sequence's stream: float64 `[a, T]`."""
        numbers = torch.zeros(needed.shape, dtype=torch.float64)
        for slot, generator in enumerate(self._generators):
            count = int(needed[slot].sum())
            numbers[slot, needed[slot]] = torch.rand(count, generator=generator, dtype=torch.float64)
        return numbers

    def draw(self, logits: Tensor, needed: Tensor) -> Tensor:
        """A token for every True of bool `[a, T]` (CPU) from logits `[a, T, V]`: int64 `[a, T]` on the CPU.

        The other positions get arbitrary tokens and use no random numbers.
        """
        if self.greedy:
            return logits.argmax(-1).cpu()
        return pick(self.distribution(logits), self.uniform(needed))


def pick(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Token at quantile `numbers` `[...]` of `probabilities` `[..., V]`, which need not sum to 1: int64 on the CPU."""
    heights = probabilities.double().cumsum(-1)
    targets = numbers.to(heights.device).unsqueeze(-1) * heights[..., -1:]
    found = torch.searchsorted(heights, targets, right=True).squeeze(-1)
    # A number that rounds up to the total would select a token after the last one with a positive probability.
    last = (probabilities > 0).to(torch.int8).flip(-1).argmax(-1)
    return torch.minimum(found, probabilities.shape[-1] - 1 - last).cpu()


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose probabilities reach `top_p`, renormalised: `[..., V]`."""
    ordered, order = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)
