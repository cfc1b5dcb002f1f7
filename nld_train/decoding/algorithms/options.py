"""Decode modes and options, and the check of a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from nld_train.model.vision.picture_prompt import refuse_pictures

# Command lines are checked with these classes before torch is imported.
if TYPE_CHECKING:
    from nld_train.decoding.engines.engine import Limits

Graphs = Literal["auto", "on", "off"]
Mode = Literal["ar", "diffusion", "linear", "quadratic"]
BlockStart = Literal["seed", "masks"]
# Seeds of torch's generators, with room for a batch: sequence i adds i.
_SEEDS = 2**63
# Positions of a pass of quadratic self-speculation that are allowed with a shorter context.
_QUADRATIC_POSITIONS = 4096


class StopRule(Protocol):
    """What ends a sequence, beside its stop tokens."""

    def completed_by(self, token: int) -> bool:
        """Appends the next token of the sequence; True where the sequence ends with it."""


@dataclass(frozen=True)
class DecodeOptions:
    """Options of one call; every mode reads the ones that apply to it.

    Attributes:
        max_new_tokens: maximum number of new tokens of a sequence, which must fit into the context after each prompt.
        block_length: B of diffusion and linear, k of quadratic self-speculation. The same quantity as `block_size` in
            the training configuration; the values may differ.
        block_start: how a block of diffusion starts: with the `seed`, the AR prediction after the text, as decoding
            does; or with `masks` alone, as in the paper's oracle bound. None: the seed, unless there was no AR loss in
            training.
        temperature: 0 decodes greedily.
        top_k: sample among the k most likely tokens; 0 among all.
        top_p: sample among the most likely tokens that together reach this probability.
        seeds: one seed per sequence, or one number; sequence i then has the seed `seeds + i`. The random numbers of a
            sequence depend on its seed alone.
        stop_tokens: ids that end a sequence; the id itself is returned.
        stop_strings: texts that end a sequence at the token that completes one; they need `to_text`.
        to_text: turns the new ids of a sequence into text.
        adapter: draft with the drafter adapter (linear self-speculation only).
        ar_weight: w of quadratic self-speculation, whose target is `w * AR + (1 - w) * diffusion`; only w = 1 preserves
            the AR distribution.
        cuda_graphs: whether decode cycles run as CUDA graphs: `auto` where they can (one CUDA device, attention that
            takes masks), `on` also requires it, `off` never.
        draft_threshold: linear self-speculation drafts in passes that each commit what is at least this probable, and
            the most confident draft; 0 drafts in one pass. Greedy only.
        max_thinking_tokens: after this many new tokens `end_think_token` follows, unless it is among them; None for no
            limit. Not in quadratic self-speculation.
        end_think_token: id of the token that ends the thinking of an answer.
        stop_rule: for a sequence's number an object that is told each of its new tokens in order and says whether the
            sequence ends with it; None for none.

    Raises:
        ValueError: a value out of its range.
    """

    max_new_tokens: int
    block_length: int = 32
    block_start: BlockStart | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seeds: int | tuple[int, ...] = 0
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    to_text: Callable[[Sequence[int]], str] | None = None
    adapter: bool = False
    ar_weight: float = 1.0
    cuda_graphs: Graphs = "auto"
    draft_threshold: float = 0.0
    max_thinking_tokens: int | None = None
    end_think_token: int | None = None
    stop_rule: Callable[[int], StopRule] | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("max_new_tokens", 1), ("block_length", 1), ("temperature", 0), ("top_k", 0)):
            if not lowest <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not {lowest} or more")
        if self.block_start is not None and self.block_start not in get_args(BlockStart):
            raise ValueError(f"block_start: {self.block_start!r} is not one of {', '.join(get_args(BlockStart))}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} is not in (0, 1]")
        if not 0 <= self.ar_weight <= 1:
            raise ValueError(f"ar_weight: {self.ar_weight} is not in [0, 1]")
        if not 0 <= self.draft_threshold <= 1:
            raise ValueError(f"threshold: {self.draft_threshold} is not in [0, 1]")
        if self.draft_threshold and self.temperature:
            raise ValueError("threshold: drafts of several passes are verified greedily only; use temperature 0")
        if (self.max_thinking_tokens is None) != (self.end_think_token is None):
            raise ValueError("max_thinking_tokens: give it together with end_think_token_id, or neither")
        if self.max_thinking_tokens is not None and self.max_thinking_tokens < 0:
            raise ValueError(f"max_thinking_tokens: {self.max_thinking_tokens} is not 0 or more")
        for seed in (self.seeds,) if isinstance(self.seeds, int) else self.seeds:
            if not 0 <= seed < _SEEDS:
                raise ValueError(f"seeds: {seed} is not in [0, 2^63)")
        if self.cuda_graphs not in get_args(Graphs):
            raise ValueError(f"cuda_graphs: {self.cuda_graphs!r} is not one of {', '.join(get_args(Graphs))}")
        if self.stop_strings and self.to_text is None:
            raise ValueError("stop_strings: they need to_text, which turns ids into text")
        if any(not text for text in self.stop_strings):
            raise ValueError("stop_strings: an empty string would stop every sequence at once")

    def seed_of(self, sequence: int) -> int:
        """The seed of a sequence of the batch."""
        return self.seeds + sequence if isinstance(self.seeds, int) else self.seeds[sequence]


def check_request(model: Limits, prompts: Sequence[Sequence[int]], mode: str, options: DecodeOptions) -> None:
    """Refuses a request that cannot be decoded, before anything is computed.

    Raises:
        ValueError: an unknown mode; no prompts, an empty one, one that fills the context, one with an id outside the
            vocabulary or with the mask token; pictures of a model that reads text alone, or that do not fit the `[IMG]`
            tokens of their prompt; not one seed per prompt; no drafter adapter where one is required; AR
            predictions of a model that has none; more new tokens than the context has room for after a prompt; what
            `check_block_length` refuses.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: {mode!r} is not one of {', '.join(get_args(Mode))}")
    if not prompts:
        raise ValueError("prompts: there are none")
    for number, prompt in enumerate(prompts):
        _check_prompt(model, number, prompt)
        if model.image_tokens is None:
            refuse_pictures(number, prompt)
        else:
            model.image_tokens.check(number, prompt)
    if not isinstance(options.seeds, int) and len(options.seeds) != len(prompts):
        raise ValueError(f"seeds: {len(options.seeds)} of them for {len(prompts)} prompts")
    if options.adapter and mode != "linear":
        raise ValueError(f"adapter: mode {mode!r} does not draft with one; only linear does")
    if options.block_start == "masks" and mode != "diffusion":
        raise ValueError(f"block_start: mode {mode!r} needs the seed; only diffusion can start with masks alone")
    if options.adapter and not model.has_adapter:
        raise ValueError("adapter: this model has no drafter adapter")
    if options.draft_threshold and mode != "linear":
        raise ValueError(f"draft_threshold: mode {mode!r} does not draft by confidence; only linear does")
    if (end := options.end_think_token) is not None:
        if mode == "quadratic":
            raise ValueError("max_thinking_tokens: not in quadratic self-speculation")
        if not 0 <= end < model.vocabulary_size or end == model.mask_token_id:
            raise ValueError(f"end_think_token_id: {end} is no token of the vocabulary of {model.vocabulary_size}")
    check_predictions(model, mode, options.block_start)
    _check_room(model, prompts, options.max_new_tokens)
    check_block_length(model, mode, options.block_length)


def check_predictions(model: Limits, mode: str, block_start: BlockStart | None = None) -> None:
    """Refuses AR predictions of a model whose clean tokens saw what they would predict.

    Raises:
        ValueError: the mode, or blocks that begin with an AR prediction, need them.
    """
    if model.clean_stream.block is None:
        return
    trained = "this model was trained with diffusion.clean=block, where tokens see what AR would predict"
    if mode != "diffusion":
        raise ValueError(f"mode: {mode!r} needs AR predictions, and {trained}; only diffusion decodes it")
    if block_start == "seed":
        raise ValueError(f"block_start: 'seed' is an AR prediction, and {trained}; leave it out")


def _check_room(model: Limits, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    number, prompt = max(enumerate(prompts), key=lambda numbered: len(numbered[1]))
    room = model.context_length - len(prompt)
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens: {max_new_tokens} do not fit into the context of {model.context_length} after the "
            f"{len(prompt)} tokens of prompt {number}; at most {room} do"
        )


def check_block_length(model: Limits, mode: str, block_length: int) -> None:
    """Refuses blocks for which no memory would suffice: a pass computes logits and attention for all their positions.

    Raises:
        ValueError: a block longer than the context, or more positions of a quadratic pass than the context, or
            `_QUADRATIC_POSITIONS` where that is shorter.
    """
    if mode != "ar" and block_length > model.context_length:
        raise ValueError(f"block_length: {block_length} is longer than the context of {model.context_length}")
    most, positions = max(model.context_length, _QUADRATIC_POSITIONS), block_length * (block_length + 1)
    if mode == "quadratic" and positions > most:
        raise ValueError(
            f"block_length: mode 'quadratic' computes {positions} positions in a pass with {block_length} drafts; "
            f"the most here is {most}"
        )


def _check_prompt(model: Limits, number: int, prompt: Sequence[int]) -> None:
    if len(prompt) == 0:
        raise ValueError(f"prompts: prompt {number} is empty; it needs at least one token (the BOS token will do)")
    if len(prompt) >= model.context_length:
        raise ValueError(
            f"prompts: prompt {number} has {len(prompt)} tokens, which leaves no room in the context "
            f"of {model.context_length}"
        )
    if model.mask_token_id in prompt:
        raise ValueError(f"prompts: prompt {number} contains the mask token (id {model.mask_token_id})")
    if min(prompt) < 0 or max(prompt) >= model.vocabulary_size:
        raise ValueError(f"prompts: prompt {number} has ids outside the vocabulary of {model.vocabulary_size}")
