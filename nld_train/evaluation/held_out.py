"""What is decoded during a stage: beginnings of held-out texts, or held-out conversations up to their last answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nld_train.config.schema import Config
from nld_train.data.questions import stage_questions
from nld_train.data.samples import Sample, validation_samples
from nld_train.data.tokenizer import load_tokenizer
from nld_train.evaluation.right_answers import ExactMatch


@dataclass(frozen=True)
class HeldOut:
    """Prompts, and for questions the answers to them.

    Attributes:
        prompts: ids of each, with pictures where there are some.
        answers: ids of each; None for texts, which can go on in many ways.
        stop_tokens: ids that end a text.
        tokenizer: of the data, where the run names one.
    """

    prompts: Sequence[Sequence[int]]
    answers: list[list[int]] | None
    stop_tokens: tuple[int, ...]
    tokenizer: Any = None

    def exact(self, token_ids: Sequence[Sequence[int]]) -> float:
        """Share of the questions whose answer a decoding gives exactly.

        Args:
            token_ids: new tokens of each; those that the limit on new tokens has cut are wrong.
        """
        assert self.answers is not None, "texts have no answers"
        return fmean(ExactMatch(self.stop_tokens, self.tokenizer).right(token_ids, self.answers))


def held_out_of(config: Config, stage: str) -> HeldOut:
    """What the hook decodes in a stage: questions of its chat sets, where it has any, else beginnings of texts.

    Raises:
        UserError: a set cannot be read, or holds no question for which the context has room.
    """
    tokenizer = load_tokenizer(config.data.tokenizer) if config.data.tokenizer else None
    if (asked := stage_questions(config, stage)) is None:
        return _texts(config, stage, tokenizer)
    found, stop_tokens = asked
    return HeldOut([each.prompt for each in found], [each.answer for each in found], stop_tokens, tokenizer)


def _texts(config: Config, stage: str, tokenizer: Any) -> HeldOut:
    samples = validation_samples(config, stage, level=None, pictures=False)
    settings = config.evaluation
    prompts = [prompt_of(samples[index], settings.prompt_tokens) for index in range(settings.prompts)]
    return HeldOut(prompts, None, (config.model.eos_token_id,), tokenizer)


def prompt_of(sample: Sample, length: int) -> list[int]:
    """The first tokens, `length` or fewer, of the longest document in a sample.

    The document's last token is left out unless it is the only one, since a finished document cannot be continued.
    """
    sizes = sample["documents"].unique_consecutive(return_counts=True)[1]
    longest = int(sizes.argmax())
    start = int(sizes[:longest].sum())
    count = max(1, min(length, int(sizes[longest]) - 1))
    tokens: list[int] = sample["tokens"][start : start + count].tolist()
    return tokens
