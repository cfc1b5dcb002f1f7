"""Samples tokens from logits, with one random stream per sequence, so that a text does not depend on its batch.

Random numbers are drawn on the CPU before a forward: how many a sequence needs does not depend on its logits. So what
follows a forward is a function of tensors, on any device (`Shaping`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.options import DecodeOptions


@dataclass(frozen=True)
class Shaping:
    """From logits to the distribution that tokens are drawn from: temperature, then top-k, then top-p."""

    temperature: float
    top_k: int
    top_p: float

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without random numbers."""
        return self.temperature == 0

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities `[..., V]` after temperature, top-k and top-p; one-hot at the argmax where greedy."""
        if self.greedy:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        probabilities = logits.softmax(-1)
        return probabilities if self.top_p == 1 else nucleus(probabilities, self.top_p)

    def draw(self, logits: Tensor, numbers: Tensor | None) -> Tensor:
        """A token from each of the logits `[a, T, V]`: int64 `[a, T]` on their device.

        Args:
            logits: of the model.
            numbers: float64 `[a, T]` in [0, 1), from `TokenSampling.numbers`; None where greedy.
        """
        if numbers is None:
            assert self.greedy
            return logits.argmax(-1)
        return pick(self.distribution(logits), numbers.to(logits.device))


class TokenSampling:
    """The random streams of the active sequences of a batch.

    Args:
        options: temperature, top-k, top-p and seeds.
        sequences: numbers of the active sequences, in the order of all tensors here.
    """

    def __init__(self, options: DecodeOptions, sequences: Sequence[int]) -> None:
        self.options = options
        self.shaping = Shaping(options.temperature, options.top_k, options.top_p)
        # On the CPU, so that the numbers are the same on every device and on every rank.
        self._generators = [self._stream(sequence) for sequence in sequences]

    def admit(self, slot: int, sequence: int) -> None:
        """Assigns a slot to another sequence."""
        self._generators[slot] = self._stream(sequence)

    def keep_slots(self, slots: Sequence[int]) -> None:
        """Keeps only the streams of these slots."""
        self._generators = [self._generators[slot] for slot in slots]

    def at(self, slots: Sequence[int]) -> TokenSampling:
        """The streams of the sequences in these slots only."""
        part = copy.copy(self)
        part.keep_slots(slots)
        return part

    def _stream(self, sequence: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed_of(sequence))

    def numbers(self, needed: Tensor) -> dict[str, Tensor]:
        """One number in [0, 1) for every True of bool `[a, T]`, from each sequence's stream, column by column.

        Returns:
            `numbers`, float64 `[a, T]` on the CPU, 0 where none is needed; nothing where tokens are taken greedily.
        """
        if self.shaping.greedy:
            return {}
        numbers = torch.zeros(needed.shape, dtype=torch.float64)
        for slot, generator in enumerate(self._generators):
            count = int(needed[slot].sum())
            numbers[slot, needed[slot]] = torch.rand(count, generator=generator, dtype=torch.float64)
        return {"numbers": numbers}

    def one_each(self) -> dict[str, Tensor]:
        """`numbers`, one for every sequence: float64 `[a, 1]`."""
        return self.numbers(torch.ones(len(self._generators), 1, dtype=torch.bool))


def pick(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Token at quantile `numbers` `[...]` of `probabilities` `[..., V]`, which need not sum to 1: int64."""
    heights = probabilities.double().cumsum(-1)
    targets = numbers.unsqueeze(-1) * heights[..., -1:]
    found = torch.searchsorted(heights, targets, right=True).squeeze(-1)
    # A number that rounds up to the total would select a token after the last one with a positive probability.
    last = (probabilities > 0).to(torch.int8).flip(-1).argmax(-1)
    return torch.minimum(found, probabilities.shape[-1] - 1 - last)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose probabilities reach `top_p`, renormalised: `[..., V]`."""
    ordered, order = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)
