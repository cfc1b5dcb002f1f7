"""`generate` as `transformers` has it: AR by its own loops, the other modes by the decoder (`decoding_mode`)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils import logging

from checkpoint_convert.hf_package.block_decoding import (
    KEYS,
    MODE_KEY,
    Criteria,
    NoMaskToken,
    check_mode,
    chosen,
    diffusion_settings,
    refuse_ar_only,
    refuse_processors,
    streaming,
)
from checkpoint_convert.hf_package.calls import Padding, as_tuple, at_the_right
from checkpoint_convert.hf_package.generation import GenerationMethods

logger = logging.get_logger(__name__)


class TransformersGeneration(GenerationMethods, GenerationMixin):
    """Both forms of `generate`, for a model with `forward`."""

    generation_config: GenerationConfig

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """`generate` of `transformers`, or block diffusion in the form of the released class.

        The released form is `diffusion_generate`: a call that names one of `prompt_ids`, `block_length`, `threshold`,
        `steps`, `causal_context`, `max_thinking_tokens` and `end_think_token_id`, or whose second argument is a number
        of tokens. It returns `(ids, nfe)`.

        Any other call is that of `transformers`, with a prompt, a generation config, a streamer, stopping criteria and
        so on. `decoding_mode`, an argument or a key of the generation config, chooses `ar` (the default), `diffusion`,
        `linear` or `quadratic`; the others of `block_decoding.KEYS` set blocks and threshold. In `ar` everything is as
        in `transformers`; the other modes sample by temperature, top_k and top_p, and refuse by name what they lack.

        Raises:
            ValueError: a setting that the mode does not have, or what `transformers` refuses.
        """
        if MODE_KEY not in settings and _is_released_form(arguments, settings):
            return self.diffusion_generate(*arguments, **settings)
        return self._generate(*arguments, **settings)

    def _generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *arguments: Any,
        **settings: Any,
    ) -> Any:
        own = {key: settings.pop(key) for key in KEYS if key in settings}
        if own:
            generation_config, settings = _with_keys(generation_config, own, settings)
        configs = (generation_config, self.generation_config)
        mode = check_mode(chosen(MODE_KEY, {}, configs, "ar"))
        if mode != "ar":
            refuse_ar_only(mode, settings, configs)
        ids = settings.pop("input_ids", None) if inputs is None else inputs
        if ids is not None and settings.get("attention_mask") is None and settings.get("inputs_embeds") is None:
            pad, stops = (chosen(name, settings, configs) for name in ("pad_token_id", "eos_token_id"))
            settings["attention_mask"] = Padding(pad, as_tuple(stops)).mask(ids)
        processors = LogitsProcessorList([*(logits_processor or ()), NoMaskToken(self.config.mask_token_id)])
        if mode != "ar":
            return GenerationMixin.generate(self, ids, generation_config, processors, *arguments, **settings)
        prompts = ids
        if ids is not None and settings.get("attention_mask") is not None:
            prompts, settings["attention_mask"] = at_the_right(ids, settings["attention_mask"])
        with self._without_attached_drafter(mode):
            found = GenerationMixin.generate(self, prompts, generation_config, processors, *arguments, **settings)
        return found if prompts is ids else _after(ids, found)

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_inputs: Any,
    ) -> Any:
        """What `generate` of `transformers` calls to decode greedily or by sampling."""
        mode = check_mode(getattr(generation_config, MODE_KEY, None) or "ar")
        if mode == "ar":
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_inputs,
            )
        refuse_processors(mode, logits_processor)
        if synced_gpus:
            raise ValueError(f"synced_gpus: not in decoding_mode {mode!r}; use decoding_mode='ar'")
        criteria = Criteria(stopping_criteria, input_ids)
        sampling: dict[str, Any] = {}
        if generation_config.do_sample:
            sampling = {
                "temperature": chosen("temperature", {}, (generation_config,), 1.0),
                "top_k": chosen("top_k", {}, (generation_config,), 0),
                "top_p": chosen("top_p", {}, (generation_config,), 1.0),
            }
        result = self.decode(
            input_ids,
            mode,
            self._within_context(input_ids, model_inputs.get("attention_mask"), criteria.max_new_tokens),
            block_length=getattr(generation_config, "block_length", None),
            policy=diffusion_settings(generation_config) if mode == "diffusion" else None,
            observer=None if streamer is None else streaming(streamer),
            adapter=None,
            attention_mask=model_inputs.get("attention_mask"),
            eos_token_id=as_tuple(generation_config.eos_token_id),
            stop_rule=criteria.rule if criteria.needed else None,
            pixel_values=model_inputs.get("pixel_values"),
            image_sizes=model_inputs.get("image_sizes"),
            **sampling,
        )
        if streamer is not None:
            streamer.end()
        pad = chosen("pad_token_id", {}, (generation_config,))
        sequences = self._joined(input_ids, result, pad)
        return (
            GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences
        )

    def _within_context(self, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int) -> int:
        """The new tokens that fit into the context after each prompt: servers ask for more than there is room for."""
        longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(1).max())
        room = self.config.max_position_embeddings - longest
        if 1 <= room < max_new_tokens:
            logger.warning_once(f"max_new_tokens: {max_new_tokens} do not fit into the context; {room} are decoded")
            return room
        return max_new_tokens

    def prepare_inputs_for_generation(self, *arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """Those of `transformers`, without what is for `generate` alone."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*arguments, **kwargs)
        return {name: value for name, value in inputs.items() if name not in _FOR_GENERATE_ALONE}


def _after(input_ids: Tensor, found: Any) -> Any:
    """The result of `generate` with the prompts as they came."""
    sequences = found if isinstance(found, Tensor) else found.sequences
    prompts = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    sequences = torch.cat([prompts.to(sequences.device), sequences[:, input_ids.shape[1] :]], dim=1)
    if isinstance(found, Tensor):
        return sequences
    found.sequences = sequences
    return found


def _with_keys(
    config: GenerationConfig | None, own: dict[str, Any], settings: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """A generation config with this model's own keys, which `transformers` takes from there alone; and other arguments.

    Without a config the arguments that are keys of one go there too: it warns of a config together with such arguments.
    """
    found = GenerationConfig() if config is None else copy.deepcopy(config)
    for key, value in own.items():
        setattr(found, key, value)
    if config is not None:
        return found, settings
    others = found.update(**{key: value for key, value in settings.items() if value is not None})
    return found, {key: value for key, value in settings.items() if value is None or key in others}


# `transformers` passes them on to `forward`.
_FOR_GENERATE_ALONE = ("tokenizer", "assistant_tokenizer")
_RELEASED = frozenset(
    (
        "prompt_ids",
        "block_length",
        "threshold",
        "steps",
        "causal_context",
        "max_thinking_tokens",
        "end_think_token_id",
    )
)


def _is_released_form(arguments: tuple[Any, ...], settings: dict[str, Any]) -> bool:
    return bool(_RELEASED & settings.keys()) or (len(arguments) > 1 and isinstance(arguments[1], int))
