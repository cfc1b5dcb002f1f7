"""Decoding of fixed held-out prompts or questions during training, in several modes side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nld_train.config.plan import StagePlan
from nld_train.config.schema import Config, DecodingMode
from nld_train.decoding import DecodeOptions, DecodeResult, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.statistics import (
    acceptance_by_position,
    agreement,
    decoding_figures,
    graph_share,
)
from nld_train.decoding.engines.megatron_engine import MegatronEngine
from nld_train.decoding.trained_stage import clean_stream_of
from nld_train.errors import UserError
from nld_train.evaluation.held_out import HeldOut, held_out_of
from nld_train.evaluation.measure import rows_at_once
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.hooks.base import Hook, RunningStage, TimeShare, at_interval
from nld_train.training.loop.optimizer import unwrap
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.records import StepRecord

# Number of prompts whose texts are recorded.
_SAMPLES = 2
_SPECULATIVE = ("linear", "quadratic")


@dataclass(frozen=True)
class DecodeVariant:
    """A decode mode with its options.

    Attributes:
        name: the mode, with a suffix if it drafts with the adapter.
        mode: the decode mode.
        options: of the decoder.
    """

    name: str
    mode: DecodingMode
    options: DecodeOptions


class DecodingHook(Hook):
    """Records `decoding`: tokens per forward of each mode, how far the modes agree, and exact answers where asked for.

    Every data-parallel rank decodes all prompts: the result is the same under every layout, and no rank waits.

    Args:
        config: the run; the keys under `evaluation` are its settings.
        rotary: of the model; its device is the engine's.
    """

    def __init__(self, config: Config, rotary: RotaryEmbedding) -> None:
        super().__init__(config, rotary)
        if config.evaluation.cuda_graphs == "on" and rotary.frequencies.device.type != "cuda":
            raise UserError("evaluation.cuda_graphs: on needs a CUDA device; take auto or off")
        self._time = TimeShare()
        self._held_out: dict[str, HeldOut] = {}

    def due(self, plan: StagePlan, stage_step: int) -> bool:
        """See `Hook.due`: at the interval and at the stage's end, in a stage that has variants to decode."""
        decodes = bool(plan.kind.decode_variants(self.config, plan.stage))
        return decodes and at_interval(self.config.evaluation.every, stage_step, plan.steps)

    def run(self, model: list[Any], stage: RunningStage, record: StepRecord) -> None:
        """See `Hook.run`; the keys are explained in docs/evaluation.md."""
        begin = time.perf_counter()
        clean_stream = clean_stream_of(self.config, stage.plan.stage)
        engine = MegatronEngine([unwrap(chunk) for chunk in model], self.config.model, self.rotary, clean_stream)
        held_out = self.held_out(stage.plan.name)
        results: dict[str, DecodeResult] = {}
        figures: dict[str, Record] = {}
        with engine.decoding():
            for variant in self.variants(stage.plan):
                variant_begin = time.perf_counter()
                result = results[variant.name] = self._decode(engine, variant, held_out)
                seconds = time.perf_counter() - variant_begin
                figures[variant.name] = self._figures(variant, held_out, result, results.get("ar"), seconds)
        samples = self._samples(held_out, results)
        measured = {"modes": figures, "agreements": _agreements(results), "samples": samples}
        record.add("decoding", {**measured, **self._time.since(begin)})

    def variants(self, plan: StagePlan) -> list[DecodeVariant]:
        """The variants that a stage decodes; AR is first, if it is one, since the others are compared with it."""
        stop_tokens = self.held_out(plan.name).stop_tokens
        return [
            DecodeVariant(
                each.name,
                each.mode,
                DecodeOptions(
                    max_new_tokens=self.config.evaluation.max_new_tokens,
                    block_length=each.block_length,
                    stop_tokens=stop_tokens,
                    adapter=each.adapter,
                    cuda_graphs=self.config.evaluation.cuda_graphs,
                ),
            )
            for each in plan.kind.decode_variants(self.config, plan.stage)
        ]

    def held_out(self, stage: str) -> HeldOut:
        """What a stage decodes, the same at every call and under every layout.

        Raises:
            UserError: as `held_out_of`.
        """
        if stage not in self._held_out:
            self._held_out[stage] = held_out_of(self.config, stage)
        return self._held_out[stage]

    def _decode(self, engine: MegatronEngine, variant: DecodeVariant, held_out: HeldOut) -> DecodeResult:
        """Decodes the prompts in batches whose logits fit into memory beside the training state."""
        policy = Threshold(self.config.evaluation.threshold) if variant.mode == "diffusion" else None
        rows = rows_at_once(variant.mode, variant.options.block_length, engine.vocabulary_size)
        return decode(engine, held_out.prompts, variant.mode, variant.options, policy, batch_size=rows)

    def _figures(
        self,
        variant: DecodeVariant,
        held_out: HeldOut,
        result: DecodeResult,
        reference: DecodeResult | None,
        seconds: float,
    ) -> Record:
        """The figures of a variant that took `seconds`; `reference` is AR's result, if there is one."""
        figures: Record = {
            **decoding_figures(result, reference),
            "tokens_per_second": sum(result.new_tokens) / seconds,
            "prefill": result.prefill,
        }
        if result.graph_forwards:
            figures["graph_share"] = graph_share(result)
        if self.config.evaluation.exact_match and held_out.answers is not None:
            figures["exact"] = held_out.exact(result.token_ids)
        if variant.mode in _SPECULATIVE:
            budgets = [self.config.evaluation.max_new_tokens] * len(held_out.prompts)
            rates = acceptance_by_position(result, variant.options.block_length, budgets)
            figures["acceptance"] = {str(position): rate for position, rate in rates.items()}
        return figures

    def _samples(self, held_out: HeldOut, results: dict[str, DecodeResult]) -> list[dict[str, str]]:
        """Texts of the first prompts, their answers and their continuations; none without a tokenizer."""
        if held_out.tokenizer is None:
            return []
        samples = []
        for index, prompt in enumerate(held_out.prompts[:_SAMPLES]):
            ids: dict[str, list[int]] = {"prompt": list(prompt)}
            if held_out.answers is not None:
                ids["answer"] = held_out.answers[index]
            ids |= {name: result.token_ids[index] for name, result in results.items()}
            samples.append({name: held_out.tokenizer.decode(tokens) for name, tokens in ids.items()})
        return samples


def _agreements(results: dict[str, DecodeResult]) -> dict[str, float]:
    """For every two modes, under both names: the fraction of indices with the same token."""
    return {
        f"{one}/{other}": agreement(results[one].token_ids, results[other].token_ids)
        for one, other in combinations(results, 2)
    }
