"""The answers of a chat: decoded after what the cache holds of the conversation, and shown as they grow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.algorithms.outputs import DecodeResult, Progress, per_forward
from nld_train.decoding.algorithms.statistics import accepted_length
from nld_train.decoding.command_line.observers import Observers
from nld_train.decoding.command_line.request import value_errors_as_user_errors
from nld_train.decoding.command_line.terminal import Watcher, print_sequence
from nld_train.decoding.command_line.variants import DecodeVariant
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.commit import CommitPolicy


@dataclass(frozen=True)
class Answer:
    """An answer of the model.

    Attributes:
        variant: in which it was decoded.
        prompt_tokens: of the whole conversation before it.
        ended: its final state; that of the last forward where it was stopped.
        result: of the decoder; None where it was stopped.
    """

    variant: DecodeVariant
    prompt_tokens: int
    ended: Progress
    result: DecodeResult | None

    def counts(self) -> dict[str, Any]:
        """What the JSON of an answer has beyond that of a prompt; None for what is not known of a stopped answer."""
        return {
            "accepted_length": self.result and accepted_length(self.result),
            "prompt_tokens": self.prompt_tokens,
            "prefill_tokens": self.result and self.result.prefill_tokens[0],
        }

    def figures(self) -> str:
        """The line below the answer."""
        ended, new = self.ended, len(self.ended.tokens)
        parts = [f"{new} tokens", f"{per_forward(new, ended.forwards):.2f} tokens per forward"]
        accepted = self.result and accepted_length(self.result)
        if self.variant.mode in ("linear", "quadratic") and accepted is not None:
            parts.append(f"accepted length {accepted:.2f}")
        if ended.seconds > 0:
            parts.append(f"{new / ended.seconds:,.0f} tokens/s")
        if self.result is not None:
            parts.append(f"prefill of {self.result.prefill_tokens[0]:,} of {self.prompt_tokens:,} tokens")
        if ended.finish == "length":
            parts.append("cut by --max-new-tokens")
        if ended.finish is None:
            parts.append("stopped")
        return f"{self.variant.name}: {', '.join(parts)}"


class _Last:
    """An observer that keeps the last state of a sequence."""

    def __init__(self) -> None:
        self.progress = Progress(sequence=0, tokens=())

    def __call__(self, progress: Progress) -> None:
        self.progress = progress


class Answers:
    """Decodes the answers of one chat.

    Args:
        engine: the model; its cache is used by nothing else.
        tokenizer: of `transformers`.
        console: prints the answers, and streams them to a terminal; None prints nothing.
        stoppable: whether Ctrl-C stops an answer, and nothing else.
        room: of the cache for later answers, in tokens.
    """

    def __init__(self, engine: Engine, tokenizer: Any, console: Console | None, stoppable: bool, room: int) -> None:
        self._engine, self._tokenizer, self._console, self._stoppable = engine, tokenizer, console, stoppable
        self._policies: dict[str, CommitPolicy] = {}
        self._kept = KeptText(room)
        self._count = 0

    def decode(self, variant: DecodeVariant, ids: Sequence[int]) -> Answer:
        """The answer to a conversation, given as ids with the generation prompt.

        Raises:
            UserError: the conversation cannot be decoded.
        """
        last, watcher = _Last(), None
        if self._console is not None and self._console.is_terminal:
            watcher = Watcher(self._console, self._tokenizer, variant.mode, [""])
        result = None
        try:
            with watcher or nullcontext(), value_errors_as_user_errors():
                result = self._decode(variant, ids, Observers(watcher, last))
        except KeyboardInterrupt:
            if not self._stoppable:
                raise
        self._count += 1
        ended = _without_block(last.progress)
        if self._console is not None and (ended.tokens or result is not None):
            print_sequence(self._console, self._tokenizer, variant.mode, "", ended)
        return Answer(variant, len(ids), ended, result)

    def _decode(self, variant: DecodeVariant, ids: Sequence[int], observer: Observers) -> DecodeResult:
        options = replace(variant.options, seeds=variant.options.seed_of(self._count))
        policy = self._policy(variant)
        return decode(self._engine, [ids], variant.mode, options, policy, observer, kept=self._kept)

    def _policy(self, variant: DecodeVariant) -> CommitPolicy | None:
        if variant.policy is None:
            return None
        if variant.name not in self._policies:
            self._policies[variant.name] = variant.policy(self._engine)
        return self._policies[variant.name]


def _without_block(progress: Progress) -> Progress:
    """A state without the tokens of an incomplete block."""
    size = len(progress.tokens)
    return replace(progress, block=(), committed_by=progress.committed_by[:size], drafted=progress.drafted[:size])
