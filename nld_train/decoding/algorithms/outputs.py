"""The output of each sequence: tokens, the forwards that committed them, stop conditions; and a batch's result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nld_train.decoding.algorithms.options import DecodeOptions, StopRule
from nld_train.decoding.algorithms.stop_strings import StopStrings

Finish = Literal["stop", "length"]


def per_forward(new_tokens: int, forwards: int) -> float:
    """New tokens / decode forwards, without the prefill (`docs/method.md`, "Evaluation figures").

    A sequence that the prefill completed had no decode forward; it is counted as one.
    """
    return new_tokens / max(1, forwards)


@dataclass(frozen=True)
class DecodeResult:
    """A decoded batch. Lists have one element per sequence, in the order of the prompts.

    Attributes:
        token_ids: new tokens, the one that stopped the sequence included.
        finish: `stop` (a stop token or string) or `length`.
        forwards: decode forwards of the batch.
        prefill: prefill forwards of the batch.
        sequence_forwards: decode forwards of each sequence: as many as it would need alone.
        prefill_tokens: tokens of each prompt that were computed: all, but for what the cache held of it already.
        accepted: tokens of each cycle: accepted drafts and the bonus token of a verify pass in the speculative modes,
            positions committed by a denoising pass in diffusion, 1 in AR. Tokens after a stop are not counted in the
            speculative modes. The first token comes from the prefill and belongs to no cycle.
        committed_by: for each new token the number of the sequence's forward that committed it, from 1; 0 for the
            prefill.
        drafted: for each new token, whether it was a draft (or was denoised) rather than an AR prediction.
        seconds: wall time of each sequence from its prefill to its last token, while the other active sequences run
            too; without the observer's time.
        graph_forwards: decode forwards of the batch that ran as part of a CUDA graph.
    """

    token_ids: list[list[int]]
    finish: list[Finish]
    forwards: int
    prefill: int
    sequence_forwards: list[int]
    prefill_tokens: list[int]
    accepted: list[list[int]]
    committed_by: list[list[int]]
    drafted: list[list[bool]]
    seconds: list[float] = field(compare=False)
    graph_forwards: int = field(default=0, compare=False)

    @property
    def new_tokens(self) -> list[int]:
        """Number of new tokens of each sequence."""
        return [len(ids) for ids in self.token_ids]

    @property
    def tokens_per_forward(self) -> list[float]:
        """`per_forward` of each sequence."""
        return [per_forward(*counts) for counts in zip(self.new_tokens, self.sequence_forwards, strict=True)]


@dataclass(frozen=True)
class Progress:
    """The state of one sequence, for observers.

    Attributes:
        sequence: its number among the prompts.
        tokens: committed new tokens.
        block: tokens of the current block, None where still masked (diffusion).
        drafts: the drafts that the last forward verified, in order (speculative modes).
        rejected: those of them that it rejected, the last ones.
        finish: why it has ended; None while it is active.
        forwards: its decode forwards so far.
        seconds: as in `DecodeResult`; 0 while it is active.
        committed_by: for each of `tokens`, then of `block`, as in `DecodeResult`; 0 where masked.
        drafted: likewise; False where masked.
    """

    sequence: int
    tokens: tuple[int, ...]
    block: tuple[int | None, ...] = ()
    drafts: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    finish: Finish | None = None
    forwards: int = 0
    seconds: float = 0.0
    committed_by: tuple[int, ...] = ()
    drafted: tuple[bool, ...] = ()


Observer = Callable[[Progress], None]


@dataclass
class SequenceOutput:
    """One sequence while it is being decoded."""

    budget: int
    options: DecodeOptions
    number: int = 0
    tokens: list[int] = field(default_factory=list)
    committed_by: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    finish: Finish | None = None
    began: float = 0.0
    seconds: float = 0.0
    # Number of tokens checked for a stop, the current block included; number of tokens up to and including the stop.
    _checked: int = field(default=0, init=False)
    _stop: int | None = field(default=None, init=False)
    _rules: list[StopRule] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.options.stop_strings and self.options.to_text is not None:
            self._rules.append(StopStrings(self.options.stop_strings, self.options.to_text))
        if self.options.stop_rule is not None:
            self._rules.append(self.options.stop_rule(self.number))

    @property
    def remaining(self) -> int:
        """New tokens that still fit."""
        return self.budget - len(self.tokens)

    def commit(self, tokens: Sequence[int], passes: Sequence[int], drafted: Sequence[bool]) -> int:
        """Appends tokens up to the first stop and to the budget; returns how many were appended."""
        stop = self.stop_after(tokens)
        kept = min(len(tokens), self.remaining) if stop is None else stop
        self.tokens += tokens[:kept]
        self.committed_by += passes[:kept]
        self.drafted += drafted[:kept]
        if stop is not None:
            self.finish = "stop"
        elif self.remaining == 0:
            self.finish = "length"
        return kept

    def stop_after(self, tokens: Sequence[int]) -> int | None:
        """After how many of these next tokens, within the budget, the sequence stops; None if it continues.

        Tokens may be passed before they are committed, and again with more after them; each is checked once.
        """
        done = len(self.tokens)
        for token in tokens[self._checked - done : self.remaining]:
            if self._stop is not None:
                break
            self._checked += 1
            if self._stops(token):
                self._stop = self._checked
        return None if self._stop is None else self._stop - done

    def _stops(self, token: int) -> bool:
        # Every rule is told every token.
        ended = [rule.completed_by(token) for rule in self._rules]
        return token in self.options.stop_tokens or any(ended)
