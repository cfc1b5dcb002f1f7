"""The `generation_kwargs` of tasks: what is supported, and the settings of texts that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.errors import UserError
from nld_train.evaluation.harness.requests import GenerationSettings

# The default of lm_eval's own models.
_MAX_NEW_TOKENS = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SUPPORTED = (*_LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p")
# Arguments of other models' decoding, with the values that mean the same as leaving them out.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "best_of": (1,),
    "n": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "diversity_penalty": (0,),
    "typical_p": (1,),
    "min_p": (0,),
    "early_stopping": (False,),
    "use_cache": (True, False),
}


@dataclass(frozen=True)
class TextLimits:
    """Limits on new tokens of a text.

    Attributes:
        most: the evaluation's own, in place of each task's; None for each task's.
        context_length: of the model.

    Raises:
        UserError: no prompt leaves room for that many.
    """

    most: int | None
    context_length: int

    def __post_init__(self) -> None:
        if self.most is not None and self.most >= self.context_length:
            raise UserError(
                f"--max-new-tokens: {self.most} is not less than the model's context of {self.context_length}"
            )


def check_tasks(tasks: Sequence[Any], limits: TextLimits) -> None:
    """Refuses tasks whose texts cannot be generated as they ask.

    Args:
        tasks: tasks and groups of lm_eval.
        limits: on new tokens.

    Raises:
        UserError: an argument that is not supported or out of its range.
    """
    for task in tasks_within(tasks):
        if task.OUTPUT_TYPE == "generate_until":
            generation_settings(getattr(task.config, "generation_kwargs", None) or {}, limits, task.task_name)


def tasks_within(tasks: Sequence[Any]) -> Iterator[Any]:
    """The tasks among tasks and groups of lm_eval."""
    for task in tasks:
        yield from task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]


def generation_settings(arguments: Mapping[str, Any], limits: TextLimits, task: str = "a task") -> GenerationSettings:
    """Settings from a task's `generation_kwargs`.

    Raises:
        UserError: an argument that is not supported or out of its range; more new tokens than the context has.
    """
    where = f"--tasks: generation_kwargs of {task}"
    for name, value in arguments.items():
        if name not in _SUPPORTED and value is not None and value not in _NEUTRAL.get(name, ()):
            raise UserError(f"{where}: {name}={value!r} is not supported; only {', '.join(_SUPPORTED)} are")
    try:
        settings = _settings(arguments, limits)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    if settings.max_new_tokens >= limits.context_length:
        raise UserError(
            f"{where}: max_gen_toks {settings.max_new_tokens} is not less than the model's context of "
            f"{limits.context_length}; give --max-new-tokens"
        )
    return settings


def _settings(arguments: Mapping[str, Any], limits: TextLimits) -> GenerationSettings:
    # A task that names no length gets lm_eval's, or what leaves room for its prompt.
    default = min(_MAX_NEW_TOKENS, limits.context_length // 2)
    known = normalize_gen_kwargs(dict(arguments), default_max_gen_toks=default)
    most = known["max_gen_toks"] if limits.most is None else limits.most
    if most < 1:
        raise ValueError(f"max_gen_toks: {most} is not 1 or more")
    stops = tuple(stop for stop in known["until"] if stop)
    if not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"until: {arguments['until']!r} is neither a text nor a list of texts")
    temperature = float(known.get("temperature", 1.0)) if known["do_sample"] else 0.0
    settings = GenerationSettings(
        max_new_tokens=most,
        stop_strings=stops,
        temperature=temperature,
        top_k=int(known.get("top_k") or 0) if temperature else 0,
        top_p=float(known.get("top_p") or 1.0) if temperature else 1.0,
    )
    # Checks the ranges.
    DecodeOptions(most, temperature=temperature, top_k=settings.top_k, top_p=settings.top_p)
    return settings
