"""The generate methods: thin wrappers of the decoder, which has the algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig

from checkpoint_convert.hf_package.cached_engine import CachedEngine, Vision
from checkpoint_convert.hf_package.calls import (
    CallSettings,
    Padding,
    as_tuple,
    diffusion_policy,
    joined,
    pictures_of_call,
    prompts_of,
    the_prompts,
)
from checkpoint_convert.hf_package.drafting import DraftingMethods
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import Mode, StopRule
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer
from nld_train.decoding.policies.commit import CommitPolicy


class GenerationMethods(DraftingMethods):
    """AR, diffusion and self-speculation for a model with `config`, `encoder` and `diffusion_head`.

    The names and the order of arguments are those of the released class; `input_ids`, as tokenizers call them, is
    another name of `prompt_ids`.
    """

    diffusion_head: nn.Linear
    generation_config: GenerationConfig
    training: bool
    eval: Any
    train: Any

    def ar_generate(
        self,
        prompt_ids: Tensor | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        eos_token_id: Any = None,
        *,
        input_ids: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts one token per forward.

        Args:
            prompt_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            temperature: 0 decodes greedily.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            input_ids: another name of `prompt_ids`.
            **settings: `calls.CallSettings` by name: `attention_mask`, `top_k`, `top_p`, `seed`, `stop_strings`,
                `tokenizer`, `max_thinking_tokens`, `end_think_token_id`, `pixel_values`, `image_sizes`.

        Returns:
            int64 `[b, P + N]`, the input followed by new tokens and padding; and `nfe`, the forward calls of the batch,
            one for each of the N tokens.
        """
        ids = the_prompts(prompt_ids, input_ids)
        settings = {"temperature": temperature, "eos_token_id": eos_token_id, **settings}
        result = self.decode(ids, "ar", max_new_tokens, **settings)
        # The prefill, which is the forward of the first token.
        return self._joined(ids, result), result.forwards + result.prefill

    def diffusion_generate(
        self,
        prompt_ids: Tensor | None = None,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        threshold: float | None = None,
        causal_context: bool = True,
        temperature: float = 0.0,
        eos_token_id: Any = None,
        steps: int | None = None,
        *,
        input_ids: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts by block diffusion; `generate` in the form of the released class.

        Args:
            prompt_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            block_length: tokens per block, called `block_size` in training; None for `config.block_size`.
            threshold: a pass commits every position of at least this confidence, and always the most confident one.
                One token per pass if neither this nor `steps` is given.
            causal_context: the text before a block is causal; only True is supported.
            temperature: 0 decodes greedily.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            steps: instead of a threshold, denoising passes for all `max_new_tokens`, at least one per block. They are
                divided evenly, with the remainder in the first blocks; no block takes more passes than it has masks.
            input_ids: another name of `prompt_ids`.
            **settings: as in `ar_generate`.

        Returns:
            As `ar_generate`; `nfe` is the decode forwards, and the one that would write the last block.
        """
        if not causal_context:
            raise ValueError("causal_context: only True is supported; the KV cache holds causal keys and values")
        ids = the_prompts(prompt_ids, input_ids)
        length = self._block_length(block_length)
        prompts = prompts_of(ids, settings.get("attention_mask"), self._padding())
        policy = diffusion_policy(threshold, steps, max_new_tokens, length, prompts)
        settings = {"temperature": temperature, "eos_token_id": eos_token_id, **settings}
        result = self.decode(ids, "diffusion", max_new_tokens, length, policy, **settings)
        return self._joined(ids, result), result.forwards + 1

    def linear_spec_generate(
        self,
        prompt_ids: Tensor | None = None,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        temperature: float = 0.0,
        mask_token_id: int | None = None,
        eos_token_id: Any = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        threshold: float = 0.0,
        *,
        input_ids: Tensor | None = None,
        adapter: bool | None = None,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts by linear self-speculation; greedy output equals `ar_generate`, token for token.

        Args:
            prompt_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            block_length: tokens per block, called `block_size` in training; None for `config.block_size`.
            temperature: 0 decodes greedily.
            mask_token_id: the id to draft over; None for `config.mask_token_id`.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            max_thinking_tokens: as in `CallSettings`.
            end_think_token_id: as in `CallSettings`.
            threshold: draft in passes that each commit drafts of at least this confidence, and the most confident one;
                0 drafts in one pass. Greedy only.
            input_ids: another name of `prompt_ids`.
            adapter: draft with the drafter adapter (`drafter`); None drafts with it if there is one.
            **settings: as in `ar_generate`.

        Returns:
            As `ar_generate`; `nfe` is the decode forwards and the prefill.
        """
        ids = the_prompts(prompt_ids, input_ids)
        named = {"temperature": temperature, "mask_token_id": mask_token_id, "eos_token_id": eos_token_id}
        named |= {"max_thinking_tokens": max_thinking_tokens, "end_think_token_id": end_think_token_id}
        named |= {"draft_threshold": threshold, "adapter": adapter}
        result = self.decode(ids, "linear", max_new_tokens, block_length, **named, **settings)
        return self._joined(ids, result), result.forwards + result.prefill

    def quadratic_spec_generate(
        self,
        prompt_ids: Tensor | None = None,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        temperature: float = 0.0,
        eos_token_id: Any = None,
        ar_weight: float = 1.0,
        *,
        input_ids: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts by quadratic self-speculation, one forward per cycle.

        Args:
            prompt_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            block_length: drafts per cycle; None for `config.block_size`.
            temperature: 0 decodes greedily.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            ar_weight: weight of the AR prediction in the ensemble of both predictions that accepts drafts and gives the
                bonus token; only 1 is lossless.
            input_ids: another name of `prompt_ids`.
            **settings: as in `ar_generate`.

        Returns:
            As `ar_generate`; `nfe` is the decode forwards and the prefill.
        """
        ids = the_prompts(prompt_ids, input_ids)
        named = {"temperature": temperature, "eos_token_id": eos_token_id, "ar_weight": ar_weight}
        result = self.decode(ids, "quadratic", max_new_tokens, block_length, **named, **settings)
        return self._joined(ids, result), result.forwards + result.prefill

    def decode(
        self,
        input_ids: Tensor,
        mode: Mode,
        max_new_tokens: int,
        block_length: int | None = None,
        policy: CommitPolicy | None = None,
        observer: Observer | None = None,
        adapter: bool | None = False,
        ar_weight: float = 1.0,
        draft_threshold: float = 0.0,
        mask_token_id: int | None = None,
        stop_rule: Callable[[int], StopRule] | None = None,
        **settings: Any,
    ) -> DecodeResult:
        """Decodes in any mode with any commit policy, and returns all statistics.

        Raises:
            ValueError: a value out of its range, or a combination that cannot be decoded; the message has one line.
        """
        call = CallSettings(**settings)
        if mask_token_id is not None and not 0 <= mask_token_id < self.config.vocab_size:
            raise ValueError(f"mask_token_id: {mask_token_id} is not in the vocabulary of {self.config.vocab_size}")
        prompts = self._with_pictures(prompts_of(input_ids, call.attention_mask, self._padding()), call)
        drafter = self.drafter() if mode == "linear" and adapter is not False else None
        options = call.options(
            max_new_tokens,
            self._block_length(block_length),
            self.stop_tokens(),
            adapter=drafter is not None if adapter is None else adapter,
            ar_weight=ar_weight,
            draft_threshold=draft_threshold,
            stop_rule=stop_rule,
        )
        engine = CachedEngine(self.encoder, self.diffusion_head, drafter, mask_token_id, self._vision())
        with self._evaluating(), self._without_attached_drafter(mode):
            return decode(engine, prompts, mode, options, policy, observer)

    def _vision(self) -> Vision | None:
        """How this model reads pictures; None where it reads text alone."""
        return None

    def engine(self) -> CachedEngine:
        """The engine of the decoder, with the drafter adapter where there is one."""
        return CachedEngine(self.encoder, self.diffusion_head, self.drafter(), vision=self._vision())

    def _with_pictures(self, prompts: list[list[int]], call: CallSettings) -> Sequence[Sequence[int]]:
        pictures = pictures_of_call(call.pixel_values, call.image_sizes)
        if pictures is None:
            return prompts
        if (vision := self._vision()) is None:
            raise ValueError("pixel_values: this model reads text alone")
        return vision.image_tokens.with_pictures(prompts, pictures)

    def stop_tokens(self) -> tuple[int, ...]:
        """Stop tokens of the generation config, or if that has none, of the config."""
        return as_tuple(self.generation_config.eos_token_id) or as_tuple(self.config.eos_token_id)

    def _padding(self) -> Padding:
        return Padding(self._pad_token(), self.stop_tokens())

    def _pad_token(self) -> int | None:
        """The padding token of the generation config, or if that has none, of the config."""
        own: int | None = self.generation_config.pad_token_id
        return self.config.pad_token_id if own is None else own

    def _block_length(self, block_length: int | None) -> int:
        length = self.config.block_size if block_length is None else block_length
        if length < 1:
            raise ValueError(f"block_length: {length} is not 1 or more")
        return length

    def _joined(self, input_ids: Tensor, result: DecodeResult, padding: int | None = None) -> Tensor:
        padding = self._pad_token() if padding is None else padding
        return joined(input_ids, result.token_ids, next(iter(self.stop_tokens()), 0) if padding is None else padding)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode while decoding: no dropout, no recomputation. The previous mode is restored."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
