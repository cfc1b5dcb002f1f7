"""Converts arguments of the generate methods to prompts and options of the decoder, and its result to a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.decoding.algorithms.options import DecodeOptions, Graphs
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.decoding.policies.fixed_number import FixedNumber
from nld_train.decoding.policies.threshold import Threshold
from nld_train.decoding.policies.total_steps import TotalSteps
from nld_train.model.vision.pictures import CHANNELS, Pictures


@dataclass(frozen=True)
class CallSettings:
    """Keyword arguments of all generate methods.

    Attributes:
        attention_mask: `[b, P]`, 0 at padding on either side, for prompts of unequal length; None for no padding.
        eos_token_id: id or ids that end a sequence; None for those of the generation config.
        temperature: 0 decodes greedily.
        max_thinking_tokens: after this many new tokens `end_think_token_id` follows, unless it came before.
        end_think_token_id: id of the token that ends the thinking of an answer.
        top_k: samples among the k most likely tokens; 0 among all.
        top_p: samples among the most likely tokens whose probabilities sum to p.
        seed: one per sequence, or one for the batch; None draws one from torch's global generator.
        stop_strings: texts that end a sequence; need `tokenizer`.
        tokenizer: of the model.
        cuda_graphs: whether decode cycles run as CUDA graphs: `auto` where they can, `on` or an error, `off` never.
        token_type_ids: ignored; some tokenizers return them.
        pixel_values: `[n, 3, H, W]`, the pictures of all prompts in the order of their `[IMG]` tokens, padded at the
            right and below; as the processor of a vision-language model returns them.
        image_sizes: int `[n, 2]`, height and width of each in pixels; None where all are H x W.
    """

    attention_mask: Tensor | None = None
    eos_token_id: int | Sequence[int] | None = None
    temperature: float = 0.0
    max_thinking_tokens: int | None = None
    end_think_token_id: int | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    tokenizer: Any = None
    cuda_graphs: Graphs = "auto"
    token_type_ids: Tensor | None = None
    pixel_values: Tensor | None = None
    image_sizes: Tensor | Sequence[Sequence[int]] | None = None

    def options(self, max_new_tokens: int, block_length: int, stop_tokens: Sequence[int], **more: Any) -> DecodeOptions:
        """The decoder's options. `stop_tokens` apply if `eos_token_id` is None.

        Raises:
            ValueError: a value out of its range.
        """
        stops = stop_tokens if self.eos_token_id is None else as_tuple(self.eos_token_id)
        to_text = None if self.tokenizer is None else self.tokenizer.decode
        return DecodeOptions(
            max_new_tokens=max_new_tokens,
            block_length=block_length,
            temperature=self.temperature,
            max_thinking_tokens=self.max_thinking_tokens,
            end_think_token=self.end_think_token_id,
            top_k=self.top_k,
            top_p=self.top_p,
            seeds=_seeds(self.seed, self.temperature),
            stop_tokens=tuple(stops),
            stop_strings=as_tuple(self.stop_strings),
            to_text=to_text,
            cuda_graphs=self.cuda_graphs,
            **more,
        )


def pictures_of_call(
    pixel_values: Tensor | None, image_sizes: Tensor | Sequence[Sequence[int]] | None
) -> Pictures | None:
    """The pictures of a call, under the names of `transformers`; None without.

    Raises:
        ValueError: shapes that do not fit.
    """
    if pixel_values is None:
        if image_sizes is not None:
            raise ValueError("image_sizes: pictures need pixel_values too")
        return None
    if pixel_values.dim() != 4 or pixel_values.shape[1] != CHANNELS:
        raise ValueError(
            f"pixel_values: shape {tuple(pixel_values.shape)} is not [pictures, {CHANNELS}, height, width]"
        )
    count, _, *largest = pixel_values.shape
    sizes = torch.tensor([largest] * count) if image_sizes is None else torch.as_tensor(image_sizes).long().cpu()
    if sizes.shape != (count, 2) or (count and bool((sizes.amax(0) > torch.tensor(largest)).any())):
        raise ValueError(
            f"image_sizes: {sizes.tolist()} are not height and width of {count} pictures of at most "
            f"{largest[0]} x {largest[1]} pixels, as pixel_values has them"
        )
    return Pictures(pixel_values, sizes)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A tuple of no values for None, of one value, or of several."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _seeds(seed: int | Sequence[int] | None, temperature: float) -> int | tuple[int, ...]:
    if seed is None:
        # A greedy call must not advance the global generator.
        return int(torch.randint(2**62, (1,))) if temperature > 0 else 0
    return seed if isinstance(seed, int) else tuple(seed)


def the_prompts(prompt_ids: Tensor | None, input_ids: Tensor | None) -> Tensor:
    """The prompts under the name of the released class, or under that of tokenizers.

    Raises:
        TypeError: none or both are given.
    """
    given = [ids for ids in (prompt_ids, input_ids) if ids is not None]
    if len(given) != 1:
        raise TypeError(f"give prompt_ids, also named input_ids, {'not twice' if given else 'the prompts'}")
    return given[0]


@dataclass(frozen=True)
class Padding:
    """What padding looks like in prompts that come without an attention mask.

    Attributes:
        token: id of the padding token; None without one.
        stops: ids of the end tokens.
    """

    token: int | None
    stops: tuple[int, ...]

    def mask(self, input_ids: Tensor) -> Tensor:
        """The attention mask `[b, P]`, 0 at padding tokens before and after a prompt.

        Raises:
            ValueError: several rows, of which one begins or ends with padding tokens that could be end tokens.
        """
        if self.token is None or not input_ids.shape[1]:
            return torch.ones_like(input_ids)
        real = (input_ids != self.token).long()
        inside = (real.cumsum(1) > 0) & (real.flip(1).cumsum(1).flip(1) > 0)
        if self.token not in self.stops:
            return inside.long()
        if len(input_ids) > 1 and not bool(inside.all()):
            row = int((~inside).any(1).long().argmax())
            raise ValueError(
                f"attention_mask: row {row} begins or ends with the padding token {self.token}, which is an end token "
                "too; pass an attention mask"
            )
        return torch.ones_like(input_ids)


def prompts_of(input_ids: Tensor, attention_mask: Tensor | None, padding: Padding) -> list[list[int]]:
    """The rows of int64 `[b, P]` without their padding, which is inferred without an attention mask.

    Raises:
        ValueError: shapes that do not fit, padding inside a prompt, or padding that could be part of the prompt.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids: shape {tuple(input_ids.shape)} is not [rows, tokens]")
    if attention_mask is None:
        attention_mask = padding.mask(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: shape {tuple(attention_mask.shape)} is not that of input_ids {tuple(input_ids.shape)}"
        )
    real = attention_mask.bool().to(input_ids.device)
    borders = (real[:, 1:] != real[:, :-1]).sum(1) + real[:, 0] + real[:, -1]
    if bool((borders > 2).any()):
        raise ValueError("attention_mask: padding inside a prompt; it is allowed before and after one")
    return [row[keep].tolist() for row, keep in zip(input_ids, real, strict=True)]


def at_the_right(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts and mask `[b, P]` with all padding before the prompts, as the loops of `transformers` need it.

    The same objects where there is none after them.
    """
    if attention_mask.dim() != 2 or attention_mask.shape != input_ids.shape or bool(attention_mask[:, -1].all()):
        return input_ids, attention_mask
    # Stable: the tokens of a prompt stay in order.
    order = attention_mask.to(input_ids.device).bool().long().argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order.to(attention_mask.device))


def joined(input_ids: Tensor, new_tokens: list[list[int]], padding: int) -> Tensor:
    """The unchanged input, followed by the new tokens, padded at the end: int64 `[b, P + longest]`."""
    longest = max(map(len, new_tokens))
    rows = [ids + [padding] * (longest - len(ids)) for ids in new_tokens]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], 1)


def diffusion_policy(
    threshold: float | None, steps: int | None, max_new_tokens: int, block_length: int, prompts: list[list[int]]
) -> CommitPolicy:
    """A threshold, or `steps` denoising passes for all blocks; without either, one token per pass.

    Raises:
        ValueError: both are given, one is out of its range, or there are fewer steps than blocks.
    """
    if steps is None:
        return FixedNumber(1) if threshold is None else Threshold(threshold)
    if threshold is not None:
        raise ValueError("steps: give either a threshold or a number of steps, not both")
    if steps < 1:
        raise ValueError(f"steps: {steps} is not 1 or more")
    # A block of one token has no masks: its token comes from the causal forward before it.
    blocks = sum(min(block_length, max_new_tokens - start) > 1 for start in range(0, max_new_tokens, block_length))
    return TotalSteps(steps, blocks, block_length, tuple(map(len, prompts)))
