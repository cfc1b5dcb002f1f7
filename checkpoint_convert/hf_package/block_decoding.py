"""The decode modes other than AR behind `transformers`' `generate`: its settings, stopping criteria and streamers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from nld_train.decoding.algorithms.options import Mode
from nld_train.decoding.algorithms.outputs import Observer, Progress
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.decoding.policies.threshold import THRESHOLD, Threshold

# Keys of a generation config that choose how this model decodes. The last three are those that vLLM reads.
MODE_KEY = "decoding_mode"
KEYS = (
    MODE_KEY,
    "block_length",
    "diffusion_selection_policy",
    "diffusion_confidence_threshold",
    "max_denoising_steps",
)
# What `generate` has for AR alone, and the value with which it does nothing.
_AR_ONLY: dict[str, Any] = {
    "num_beams": 1,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "past_key_values": None,
    "inputs_embeds": None,
}
# Their settings are in the generation config.
_SAMPLING = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)


class NoMaskToken(LogitsProcessor):
    """Minus infinity at the mask token, which no mode predicts."""

    def __init__(self, mask_token_id: int) -> None:
        self.mask_token_id = mask_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[b, V]`."""
        scores = scores.clone()
        scores[:, self.mask_token_id] = float("-inf")
        return scores


def chosen(name: str, given: dict[str, Any], configs: Sequence[GenerationConfig | None], default: Any = None) -> Any:
    """A setting: that of the call, else that of the first generation config that has one."""
    values = (given.get(name), *(getattr(config, name, None) for config in configs if config is not None))
    return next((value for value in values if value is not None), default)


def check_mode(mode: str) -> Mode:
    """Refuses what is no decode mode.

    Raises:
        ValueError: naming the key and the modes.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"{MODE_KEY}: {mode!r} is not one of {', '.join(get_args(Mode))}")
    return cast(Mode, mode)


def refuse_ar_only(mode: Mode, given: dict[str, Any], configs: Sequence[GenerationConfig | None]) -> None:
    """Refuses settings that only AR decoding has.

    Raises:
        ValueError: naming the setting.
    """
    for name, without in _AR_ONLY.items():
        value = chosen(name, given, configs, without)
        if value is not without and value != without:
            shown = f" = {value}" if isinstance(value, (int, float, str)) else ""
            raise ValueError(f"{name}{shown}: not in decoding_mode {mode!r}; use decoding_mode='ar'")


def refuse_processors(mode: Mode, processors: LogitsProcessorList) -> None:
    """Refuses changes of logits that depend on the text so far, since a pass predicts many tokens at once.

    Raises:
        ValueError: naming the logits processor.
    """
    for processor in processors:
        if not isinstance(processor, (*_SAMPLING, NoMaskToken)):
            raise ValueError(
                f"{type(processor).__name__}: logits processors other than temperature, top_k and top_p are not in "
                f"decoding_mode {mode!r}; use decoding_mode='ar'"
            )


def diffusion_settings(config: GenerationConfig) -> CommitPolicy:
    """The commit policy of a generation config: vLLM's keys, with its defaults.

    Raises:
        ValueError: another policy than the threshold.
    """
    policy = getattr(config, "diffusion_selection_policy", None) or "confidence_threshold"
    if policy != "confidence_threshold":
        raise ValueError(f"diffusion_selection_policy: {policy!r} is not supported; use 'confidence_threshold'")
    threshold = getattr(config, "diffusion_confidence_threshold", None)
    steps = getattr(config, "max_denoising_steps", None)
    found = Threshold(THRESHOLD.default if threshold is None else threshold)
    return found if steps is None else AtMost(steps, found)


class AtMost:
    """A policy whose last pass commits all that is left.

    Args:
        passes: denoising passes of a block.
        policy: of the passes before the last one.

    Raises:
        ValueError: fewer than one pass.
    """

    def __init__(self, passes: int, policy: CommitPolicy) -> None:
        if passes < 1:
            raise ValueError(f"max_denoising_steps: {passes} is not 1 or more")
        self._passes, self._policy = passes, policy

    def choose(self, view: Any) -> Tensor:
        """See `CommitPolicy`."""
        last = view.passes + 1 >= self._passes
        return self._policy.choose(view).cpu() | (last[:, None] & view.masked)


class Criteria:
    """The stopping criteria of `generate` for the sequences of a call, each of which is asked token by token.

    Args:
        criteria: of the call.
        input_ids: int64 `[b, P]`, before the new tokens.
    """

    def __init__(self, criteria: StoppingCriteriaList, input_ids: Tensor) -> None:
        lengths = [one.max_length for one in criteria if isinstance(one, MaxLengthCriteria)]
        self.max_new_tokens = min(lengths) - input_ids.shape[1]
        # The decoder has these two itself.
        self._others = [one for one in criteria if not isinstance(one, (MaxLengthCriteria, EosTokenCriteria))]
        self._input_ids = input_ids

    def rule(self, sequence: int) -> _Rule:
        """The criteria of a sequence, as a `StopRule` of the decoder."""
        return _Rule(self._others, self._input_ids[sequence : sequence + 1])

    @property
    def needed(self) -> bool:
        """Whether there are any that the decoder does not have."""
        return bool(self._others)


class _Rule:
    def __init__(self, criteria: list[Any], text: Tensor) -> None:
        self._criteria, self._text = criteria, text

    def completed_by(self, token: int) -> bool:
        self._text = torch.cat([self._text, self._text.new_tensor([[token]])], dim=1)
        # Each is asked at every token: some count.
        ended = [bool(torch.as_tensor(one(self._text, None)).all()) for one in self._criteria]
        return any(ended)


def streaming(streamer: Any) -> Observer:
    """An observer that passes committed tokens to a streamer, one by one."""
    sent = 0

    def observe(progress: Progress) -> None:
        nonlocal sent
        for token in progress.tokens[sent:]:
            streamer.put(torch.tensor([token]))
        sent = len(progress.tokens)

    return observe
