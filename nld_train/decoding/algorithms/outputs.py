"""What has become of each row: its tokens, what committed them, when it stops; and the result of a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.algorithms.stop_strings import StopStrings

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class DecodeResult:
    """A decoded batch. Lists have one member per row, in the order of the prompts.

    Attributes:
        token_ids: new tokens, the one that stopped the row included.
        finish: `stop` (a stop token or string) or `length`.
        forwards: decode forwards of the batch.
        prefill: prefill forwards of the batch.
        row_forwards: decode forwards that a row took part in: what it would have taken alone.
        accepted: what each cycle brought: tokens of a verify pass (accepted drafts and the AR token after them) in the
            speculative modes, positions committed by a denoising pass in diffusion, 1 in AR. What a stop cut off is not
            counted in the speculative modes. The first token comes from the prefill, outside of any cycle.
        committed_by: for each new token the row's forward that committed it, from 1; 0 for the prefill.
        drafted: for each new token, whether it was a draft (or was denoised) rather than an AR prediction.
        seconds: wall time of each row from its prefill to its last token, beside the other rows at work; without what
            the observer took.
    """

    token_ids: list[list[int]]
    finish: list[Finish]
    forwards: int
    prefill: int
    row_forwards: list[int]
    accepted: list[list[int]]
    committed_by: list[list[int]]
    drafted: list[list[bool]]
    seconds: list[float] = field(compare=False)

    @property
    def new_tokens(self) -> list[int]:
        """Number of new tokens of each row."""
        return [len(ids) for ids in self.token_ids]

    @property
    def tokens_per_forward(self) -> list[float]:
        """New tokens / decode forwards of each row, the prefill aside (reference section 7).

        A row that the prefill alone completed had no decode forward; it counts as having had one.
        """
        return [new / max(1, count) for new, count in zip(self.new_tokens, self.row_forwards, strict=True)]


@dataclass(frozen=True)
class Progress:
    """A row at one moment, for those who watch.

    Attributes:
        row: its number among the prompts.
        tokens: committed new tokens.
        block: tokens of the block at work, None where still masked (diffusion).
        rejected: drafts that this cycle refused (speculative modes).
        finish: how it has ended; None while it goes on.
        forwards: decode forwards it has taken part in.
        seconds: as in `DecodeResult`; 0 while it goes on.
        committed_by: for each of `tokens`, then of `block`, as in `DecodeResult`; 0 where masked.
        drafted: likewise; False where masked.
    """

    row: int
    tokens: tuple[int, ...]
    block: tuple[int | None, ...] = ()
    rejected: tuple[int, ...] = ()
    finish: Finish | None = None
    forwards: int = 0
    seconds: float = 0.0
    committed_by: tuple[int, ...] = ()
    drafted: tuple[bool, ...] = ()


Observer = Callable[[Progress], None]


@dataclass
class RowOutput:
    """One row while it is being decoded."""

    budget: int
    options: DecodeOptions
    tokens: list[int] = field(default_factory=list)
    committed_by: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    finish: Finish | None = None
    began: float = 0.0
    seconds: float = 0.0
    # How many tokens, those of a block at work included, were looked at for a stop, and how many stand up to one.
    _checked: int = field(default=0, init=False)
    _stop: int | None = field(default=None, init=False)
    _strings: StopStrings | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.options.stop_strings and self.options.to_text is not None:
            self._strings = StopStrings(self.options.stop_strings, self.options.to_text)

    @property
    def remaining(self) -> int:
        """New tokens that still fit."""
        return self.budget - len(self.tokens)

    def commit(self, tokens: Sequence[int], passes: Sequence[int], drafted: Sequence[bool]) -> int:
        """Takes tokens up to the first stop and to the budget; returns how many it took."""
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
        """After how many of these next tokens the row stops; None if it goes on. The budget is kept in mind.

        Tokens may be asked about before they are committed, and again with more behind them; each is looked at once.
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
        if token in self.options.stop_tokens:
            return True
        return self._strings is not None and self._strings.completed_by(token)
