"""The decode modes straight from docs/method.md, "Decoding": one sequence, no cache, every forward over the whole text,
by the stock Ministral3 of `transformers` under a mask written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Ministral3ForCausalLM

Chooser = Callable[[Tensor, list[bool]], list[int]]


@dataclass
class Reader:
    """Full forwards of a stock model."""

    model: Ministral3ForCausalLM
    mask: int

    @torch.no_grad()
    def logits(self, tokens: list[int], block: int = 0, before: list[int] | None = None) -> Tensor:
        """`[n, V]` over a text whose last `block` tokens see everything; the tokens before them see causally.

        With `before`, the sizes of the blocks before the last, these see their whole block as well.
        """
        size = len(tokens)
        visible = torch.ones(size, size).tril().bool()
        visible[size - block :] = True
        begin = 0
        for length in before or []:
            visible[begin : begin + length, begin : begin + length] = True
            begin += length
        mask = torch.zeros(1, 1, size, size).masked_fill(~visible, float("-inf"))
        logits = self.model(torch.tensor([tokens]), attention_mask=mask, use_cache=False).logits[0]
        logits[:, self.mask] = float("-inf")
        return logits

    def next_token(self, text: list[int]) -> int:
        """The AR prediction after a text."""
        return int(self.logits(text)[-1].argmax())

    def mixture(self, text: list[int], length: int, ar_weight: float) -> Tensor:
        """`[V]`, probabilities of the ensemble after a text; the diffusion one at the first of `length` masks."""
        ar = self.logits(text)[-1].softmax(-1)
        if ar_weight == 1:
            return ar
        masks = self.logits(text + [self.mask] * length, block=length)[len(text)].softmax(-1)
        return ar_weight * ar + (1 - ar_weight) * masks


@dataclass
class Naive:
    """New tokens and what each cycle brought."""

    tokens: list[int]
    accepted: list[int]
    forwards: int


def cut(tokens: list[int], limit: int, stops: tuple[int, ...]) -> tuple[list[int], bool]:
    """Up to the first stop and the limit; and is it over."""
    for index, token in enumerate(tokens):
        if token in stops or index + 1 == limit:
            return tokens[: index + 1], True
    return tokens, False


def ar(reader: Reader, prompt: list[int], limit: int, stops: tuple[int, ...] = ()) -> Naive:
    new: list[int] = []
    over = False
    while not over:
        new, over = cut([*new, reader.next_token(prompt + new)], limit, stops)
    return Naive(new, [1] * (len(new) - 1), len(new) - 1)


def linear(reader: Reader, prompt: list[int], limit: int, length: int, stops: tuple[int, ...] = ()) -> Naive:
    new, over = cut([reader.next_token(prompt)], limit, stops)
    accepted, forwards = [], 0
    while not over:
        size = min(length, limit - len(new))
        text = prompt + new
        drafts = reader.logits(text + [reader.mask] * (size - 1), block=size)[len(text) :].argmax(-1).tolist()
        forwards += 1 if size == 1 else 2
        good: list[int] = []
        while len(good) < size - 1 and reader.next_token(text + good) == drafts[len(good)]:
            good.append(drafts[len(good)])
        before = len(new)
        new, over = cut([*new, *good, reader.next_token(text + good)], limit, stops)
        accepted.append(len(new) - before)
    return Naive(new, accepted, forwards)


def quadratic(
    reader: Reader, prompt: list[int], limit: int, length: int, stops: tuple[int, ...] = (), ar_weight: float = 1.0
) -> Naive:
    """Each group of a cycle by a forward of its own: the text, the drafts up to the group's, and its masks."""

    def masks_after(text: list[int]) -> list[int]:
        return reader.logits(text + [reader.mask] * length, block=length)[len(text) :].argmax(-1).tolist()

    def target(text: list[int]) -> int:
        return int(reader.mixture(text, length, ar_weight).argmax())

    new, over = cut([target(prompt)], limit, stops)
    drafts = [new[0], *masks_after(prompt)[1:]]
    accepted, cycles = [], 0
    while not over:
        text = prompt + new[:-1]
        kept = 1
        while kept < length and target(text + drafts[:kept]) == drafts[kept]:
            kept += 1
        bonus = target(text + drafts[:kept])
        before = len(new)
        new, over = cut([*new, *drafts[1:kept], bonus], limit, stops)
        drafts = [bonus, *masks_after(text + drafts[:kept])[1:]]
        accepted.append(len(new) - before)
        cycles += 1
    return Naive(new, accepted, cycles)


def diffusion(
    reader: Reader,
    prompt: list[int],
    limit: int,
    length: int,
    choose: Chooser,
    stops: tuple[int, ...] = (),
    seeds: int = 1,
    prompt_block: int | None = None,
) -> Naive:
    """`choose` takes the block's logits and what is masked, and names the positions to commit; a block begins with an
    AR prediction, or none (`seeds` 0). With `prompt_block`, the size of blocks in the prompt, clean tokens see their
    whole block."""
    new: list[int] = []
    accepted, forwards = [], 0
    before: list[int] = []
    while prompt_block is not None and sum(before) < len(prompt):
        before.append(min(prompt_block, len(prompt) - sum(before)))
    while True:
        size = min(length, limit - len(new))
        block = [reader.next_token(prompt + new)][:seeds] + [reader.mask] * (size - seeds)
        masked = [False] * seeds + [True] * (size - seeds)
        while True:
            certain = masked.index(True) if any(masked) else size
            done, over = cut(new + block[:certain], limit, stops)
            if over:
                return Naive(done, accepted, forwards)
            if not any(masked):
                break
            logits = reader.logits(prompt + new + block, block=size, before=before)[-size:]
            forwards += 1
            positions = choose(logits, masked)
            for position in positions:
                block[position], masked[position] = int(logits[position].argmax()), False
            accepted.append(len(positions))
        new += block
        if prompt_block is not None:
            before.append(size)
        forwards += 1


def at_least(threshold: float) -> Chooser:
    """Masked positions of that confidence, and the best one."""

    def choose(logits: Tensor, masked: list[bool]) -> list[int]:
        confidence = logits.softmax(-1).max(-1).values.tolist()
        candidates = [position for position, hidden in enumerate(masked) if hidden]
        best = max(candidates, key=lambda position: confidence[position])
        return [position for position in candidates if confidence[position] >= threshold or position == best]

    return choose


def lowest_entropy(bound: float) -> Chooser:
    """Masked positions of at most that entropy, and the lowest one."""

    def choose(logits: Tensor, masked: list[bool]) -> list[int]:
        entropy = torch.distributions.Categorical(logits=logits.clamp(min=-1e9)).entropy().tolist()
        candidates = [position for position, hidden in enumerate(masked) if hidden]
        best = min(candidates, key=lambda position: entropy[position])
        return [position for position in candidates if entropy[position] <= bound or position == best]

    return choose
