"""The rows of one call: those at work, and how others take the places of those that have finished."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer, Progress, RowOutput
from nld_train.decoding.algorithms.sampling import Sampler
from nld_train.decoding.algorithms.session import Session
from nld_train.decoding.engines.engine import Engine


class Batch:
    """What every decode algorithm works on.

    Args:
        engine: the model.
        prompts: ids of each row, checked by `check_request`.
        options: settings of the call.
        slack: entries of the cache that a step may need beyond a row's text.
        places: most rows at work at once; None for all.
        observer: told of every row after each forward that changed it.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        options: DecodeOptions,
        slack: int,
        places: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        places = len(prompts) if places is None else min(places, len(prompts))
        self.options = options
        self.observer = observer
        self.outputs = [
            RowOutput(min(options.max_new_tokens, engine.context_length - len(prompt)), options) for prompt in prompts
        ]
        longest = max(len(prompt) + output.budget for prompt, output in zip(prompts, self.outputs, strict=True))
        self.session = Session(engine, prompts, places, longest + slack)
        self.sampler = Sampler(options, range(places))
        self.mask_token_id = engine.mask_token_id
        self._observing = 0.0
        self._waiting = deque(range(places, len(prompts)))

    @property
    def places(self) -> list[int]:
        """All places of rows at work."""
        return list(range(len(self.session.rows)))

    @property
    def active(self) -> list[RowOutput]:
        """Outputs of the rows at work, in the session's order."""
        return [self.outputs[row] for row in self.session.rows]

    def output(self, place: int) -> RowOutput:
        """Output of the row at a place."""
        return self.outputs[self.session.rows[place]]

    def remaining(self) -> Tensor:
        """int64 `[a]`: new tokens that still fit into each row at work."""
        return torch.tensor([output.remaining for output in self.active])

    def forwards_so_far(self, place: int) -> int:
        """Decode forwards of the row at `place` until now."""
        return self.session.row_forwards[self.session.rows[place]]

    def prefill(self, places: Sequence[int], masks: int = 0) -> Tensor:
        """Begins the rows at these places; see `Session.prefill`."""
        for place in places:
            self.output(place).began = self._now()
        return self.session.prefill(places, masks)

    def commit_first(self, places: Sequence[int], tokens: Tensor) -> None:
        """Gives the rows at these places the token that their prefill predicted, int64 `[n]`."""
        for place, token in zip(places, tokens.tolist(), strict=True):
            self.output(place).commit([token], [0], [False])
            self.tell(place)

    def first_tokens(self, places: Sequence[int]) -> Tensor:
        """Prefills the rows at these places: int64 `[n]`, the token that each predicts, not committed yet."""
        one = torch.ones(len(places), 1, dtype=torch.bool)
        return self.sampler.at(places).draw(self.prefill(places), one)[:, 0]

    def begin_rows(self, places: Sequence[int]) -> Tensor:
        """Prefills the rows at these places and gives each its first token: int64 `[n]`."""
        tokens = self.first_tokens(places)
        self.commit_first(places, tokens)
        return tokens

    def next_tokens(self, following: Tensor) -> Tensor:
        """Lets rows leave and others begin: int64 `[a]`, the last token of each row, to that of each row at work."""
        while True:
            staying, fresh = self.turn_over()
            following = following[staying]
            if not fresh:
                return following
            following[fresh] = self.begin_rows(fresh)

    def commit_cycle(self, drafts: Tensor, sizes: Tensor, accepted: Tensor, following: Tensor) -> None:
        """Gives each row what a verify pass brought.

        Args:
            drafts: int64 `[a, T]`, column 0 already committed.
            sizes: int64 `[a]`, how many of them are real.
            accepted: int64 `[a]`, drafts after column 0 that hold.
            following: int64 `[a]`, the AR token after the accepted drafts.
        """
        # One conversion for all rows: a tensor's single numbers cost more than all else here.
        columns = zip(drafts.tolist(), sizes.tolist(), accepted.tolist(), following.tolist(), strict=True)
        for place, (output, (row, size, good, token)) in enumerate(zip(self.active, columns, strict=True)):
            passes = [self.forwards_so_far(place)] * (good + 1)
            kept = output.commit([*row[1 : 1 + good], token], passes, [True] * good + [False])
            output.accepted.append(kept)
            self.tell(place, rejected=row[1 + good : size])

    def turn_over(self) -> tuple[list[int], list[int]]:
        """Lets finished rows leave the work, and waiting ones take their places.

        Returns:
            The places that stay, and which of these, counted anew, have a row that is still to be prefilled.
        """
        staying: list[int] = []
        fresh: list[int] = []
        for place, output in enumerate(self.active):
            if output.finish is not None:
                if not self._waiting:
                    continue
                row = self._waiting.popleft()
                self.session.begin_row(place, row)
                self.sampler.begin_row(place, row)
                fresh.append(len(staying))
            staying.append(place)
        if len(staying) < len(self.session.rows):
            self.session.keep(staying)
            self.sampler.keep(staying)
        return staying, fresh

    def tell(
        self,
        place: int,
        rejected: Sequence[int] = (),
        block: Sequence[int | None] = (),
        committed_by: Sequence[int] = (),
        drafted: Sequence[bool] = (),
    ) -> None:
        """Tells the observer how the row at `place` stands; the last three say it of a block at work."""
        output = self.output(place)
        if output.finish is not None:
            output.seconds = self._now() - output.began
        if self.observer is None:
            return
        begin = time.perf_counter()
        self.observer(
            Progress(
                row=self.session.rows[place],
                tokens=tuple(output.tokens),
                block=tuple(block),
                rejected=tuple(rejected),
                finish=output.finish,
                forwards=self.forwards_so_far(place),
                seconds=output.seconds,
                committed_by=(*output.committed_by, *committed_by),
                drafted=(*output.drafted, *drafted),
            )
        )
        self._observing += time.perf_counter() - begin

    def _now(self) -> float:
        """Seconds on a clock that stands still while the observer is at work."""
        return time.perf_counter() - self._observing

    def result(self) -> DecodeResult:
        """The outputs of all rows, once every row has finished."""
        return DecodeResult(
            token_ids=[output.tokens for output in self.outputs],
            finish=[output.finish or "length" for output in self.outputs],
            forwards=self.session.forwards,
            prefill=self.session.prefills,
            row_forwards=self.session.row_forwards,
            accepted=[output.accepted for output in self.outputs],
            committed_by=[output.committed_by for output in self.outputs],
            drafted=[output.drafted for output in self.outputs],
            seconds=[output.seconds for output in self.outputs],
        )
