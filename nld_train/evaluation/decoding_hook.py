"""Decoding of fixed held-out prompts during training, in several modes side by side."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from nld_train.config.plan import StagePlan
from nld_train.config.schema import Config, DecodingMode
from nld_train.data.samples import Sample, validation_samples
from nld_train.data.tokenizer import load_tokenizer
from nld_train.decoding import DecodeOptions, DecodeResult, Threshold, decode
from nld_train.decoding.megatron_engine import MegatronEngine
from nld_train.decoding.statistics import (
    acceptance_by_position,
    accepted_per_cycle,
    agreement,
    tokens_per_forward,
)
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.metrics import Record
from nld_train.training.optimizer import unwrap

# Prompts whose texts are kept.
_SAMPLES = 2
_SPECULATIVE = ("linear", "quadratic")


class DecodingHook:
    """A `training.hooks.Hook`: how many tokens a forward brings in each mode, and how far the modes agree with AR.

    Every data-parallel rank decodes all prompts: the result is the same under every layout, and ranks stay in step.

    Args:
        config: the run; the keys under `evaluation` are its settings.
        rotary: gives the angles, and the device.
    """

    name = "decoding"

    def __init__(self, config: Config, rotary: RotaryEmbedding) -> None:
        self.config = config
        self.rotary = rotary
        settings = config.evaluation
        self.options = DecodeOptions(
            max_new_tokens=settings.max_new_tokens,
            block_length=settings.block_length,
            stop_tokens=(config.model.eos_token_id,),
        )
        self._begin = time.perf_counter()
        self._spent = 0.0

    def due(self, plan: StagePlan, stage_step: int) -> bool:
        """At the interval and at the end of a joint stage: before it, nothing has learned to fill in masks."""
        every = self.config.evaluation.every
        return every > 0 and plan.alpha > 0 and (stage_step % every == 0 or stage_step == plan.steps)

    def run(self, model: list[Any]) -> Record:
        """The record of a step under `decoding`; its keys are explained in docs/evaluation.md."""
        begin = time.perf_counter()
        engine = MegatronEngine([unwrap(chunk) for chunk in model], self.config.model, self.rotary)
        results: dict[DecodingMode, DecodeResult] = {}
        seconds: dict[DecodingMode, float] = {}
        with engine.decoding():
            for mode in self.config.evaluation.modes:
                mode_begin = time.perf_counter()
                results[mode] = self._decode(engine, mode)
                seconds[mode] = time.perf_counter() - mode_begin
        now = time.perf_counter()
        self._spent += now - begin
        return {
            "modes": {mode: self._figures(results, mode, seconds[mode]) for mode in results},
            "samples": self._samples(results),
            "seconds": now - begin,
            "share": self._spent / (now - self._begin),
        }

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The prompts, the same at every call and under every layout."""
        samples = validation_samples(self.config, level=None)
        settings = self.config.evaluation
        return [prompt_of(samples[place], settings.prompt_tokens) for place in range(settings.prompts)]

    def _decode(self, engine: MegatronEngine, mode: DecodingMode) -> DecodeResult:
        policy = Threshold(self.config.evaluation.threshold) if mode == "diffusion" else None
        return decode(engine, self.prompts, mode, self.options, policy)

    def _figures(self, results: dict[DecodingMode, DecodeResult], mode: DecodingMode, seconds: float) -> Record:
        result = results[mode]
        figures: Record = {
            "tokens_per_forward": tokens_per_forward(result),
            "tokens_per_second": sum(result.new_tokens) / seconds,
            "agreement": agreement(result.token_ids, results["ar"].token_ids),
            "accepted_per_cycle": accepted_per_cycle(result),
            "new_tokens": sum(result.new_tokens),
            "forwards": sum(result.row_forwards),
            "prefill": result.prefill,
        }
        if mode in _SPECULATIVE:
            length = self.options.block_length
            shares = acceptance_by_position(result, length, [self._budget(prompt) for prompt in self.prompts])
            figures["acceptance"] = {str(position): share for position, share in shares.items()}
        return figures

    def _budget(self, prompt: list[int]) -> int:
        return min(self.options.max_new_tokens, self.config.model.max_position_embeddings - len(prompt))

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.config.data.tokenizer) if self.config.data.tokenizer else None

    def _samples(self, results: dict[DecodingMode, DecodeResult]) -> list[dict[str, str]]:
        """Texts of the first prompts and their continuations; none without a tokenizer."""
        if self._tokenizer is None:
            return []
        samples = []
        for row, prompt in enumerate(self.prompts[:_SAMPLES]):
            ids: dict[str, list[int]] = {"prompt": prompt}
            ids |= {mode: result.token_ids[row] for mode, result in results.items()}
            samples.append({name: self._tokenizer.decode(tokens) for name, tokens in ids.items()})
        return samples


def prompt_of(sample: Sample, length: int) -> list[int]:
    """The first tokens, `length` or fewer, of the longest document in a sample.

    Its last token is left out where it can be: a document that has ended has nothing to continue.
    """
    sizes = sample["documents"].unique_consecutive(return_counts=True)[1]
    longest = int(sizes.argmax())
    start = int(sizes[:longest].sum())
    count = max(1, min(length, int(sizes[longest]) - 1))
    tokens: list[int] = sample["tokens"][start : start + count].tolist()
    return tokens
