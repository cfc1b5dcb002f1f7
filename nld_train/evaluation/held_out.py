"""What is decoded during a stage: beginnings of held-out texts, or held-out conversations up to their last answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.manifest import is_chat_set
from nld_train.data.questions import ends_of_turns, questions_of
from nld_train.data.sample_sets import validation_sources
from nld_train.data.samples import Sample, validation_samples
from nld_train.errors import UserError


@dataclass(frozen=True)
class HeldOut:
    """Prompts, and for questions the answers to them.

    Attributes:
        prompts: ids of each.
        answers: ids of each; None for texts, which can go on in many ways.
        stop_tokens: ids that end a text.
    """

    prompts: list[list[int]]
    answers: list[list[int]] | None
    stop_tokens: tuple[int, ...]

    def exact(self, token_ids: Sequence[Sequence[int]]) -> float:
        """Share of the questions whose answer a decoding gives exactly, token for token up to its end.

        Args:
            token_ids: new tokens of each; those that the limit on new tokens has cut are wrong.
        """
        assert self.answers is not None, "texts have no answers"
        return fmean(map(self._is_answer, token_ids, self.answers))

    def _is_answer(self, found: Sequence[int], answer: Sequence[int]) -> bool:
        end = next((index for index, token in enumerate(answer) if token in self.stop_tokens), None)
        if end is None:
            # Its template ends a turn with ordinary text, after which nothing stops.
            return list(found[: len(answer)]) == list(answer)
        if len(found) != end + 1 or found[end] not in self.stop_tokens:
            return False
        return list(found[:end]) == list(answer[:end])


def held_out_of(config: Config, stage: str) -> HeldOut:
    """What the hook decodes in a stage: questions of its chat sets, where it has any, else beginnings of texts.

    Raises:
        UserError: a set cannot be read, or holds no question for which the context has room.
    """
    chats = [source for source in validation_sources(config, stage) if is_chat_set(source.prefix)]
    return _questions(config, chats) if chats else _texts(config, stage)


def _texts(config: Config, stage: str) -> HeldOut:
    samples = validation_samples(config, stage, level=None)
    settings = config.evaluation
    prompts = [prompt_of(samples[index], settings.prompt_tokens) for index in range(settings.prompts)]
    return HeldOut(prompts, None, (config.model.eos_token_id,))


def _questions(config: Config, sources: Sequence[SourceConfig]) -> HeldOut:
    settings, context = config.evaluation, config.model.max_position_embeddings
    found = questions_of(sources, settings.prompts, context - settings.max_new_tokens)
    if not found:
        raise UserError(
            f"evaluation.prompts: no conversation of {', '.join(source.prefix for source in sources)} has an answer "
            f"after a prompt that leaves room for evaluation.max_new_tokens={settings.max_new_tokens} in the context "
            f"of {context}"
        )
    stops = dict.fromkeys([config.model.eos_token_id, *ends_of_turns(sources)])
    return HeldOut([each.prompt for each in found], [each.answer for each in found], tuple(stops))


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
