"""The rows of one call together: their session, their random streams and their outputs, and how finished rows leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine import Engine
from .options import DecodeOptions
from .outputs import DecodeResult, Observer, Progress, RowOutput
from .sampling import Sampler
from .session import Session


class Batch:
    """What every decode algorithm works on.

    Args:
        engine: the model.
        prompts: ids of each row, checked by `check_request`.
        options: settings of the call.
        slack: entries of the cache that a step may need beyond a row's text.
        observer: told of every row after each forward that changed it.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        options: DecodeOptions,
        slack: int,
        observer: Observer | None = None,
    ) -> None:
        self.options = options
        self.observer = observer
        self.outputs = [
            RowOutput(min(options.max_new_tokens, engine.context_length - len(prompt)), options) for prompt in prompts
        ]
        longest = max(len(prompt) + output.budget for prompt, output in zip(prompts, self.outputs, strict=True))
        self.session = Session(engine, prompts, longest + slack)
        self.sampler = Sampler(options, len(prompts))
        self.mask_token_id = engine.mask_token_id

    @property
    def active(self) -> list[RowOutput]:
        """Outputs of the rows at work, in the session's order."""
        return [self.outputs[row] for row in self.session.rows]

    def remaining(self) -> Tensor:
        """int64 `[a]`: new tokens that still fit into each row at work."""
        return torch.tensor([output.remaining for output in self.active])

    def forwards_so_far(self, place: int) -> int:
        """Decode forwards of the row at `place` until now."""
        return self.session.row_forwards[self.session.rows[place]]

    def commit_first(self, tokens: Tensor) -> list[int]:
        """Gives each row the token that the prefill predicted, int64 `[a]`; returns the places that go on."""
        for place, (output, token) in enumerate(zip(self.active, tokens.tolist(), strict=True)):
            output.commit([token], [0], [False])
            self.tell(place)
        return self.leave()

    def commit_cycle(self, drafts: Tensor, sizes: Tensor, accepted: Tensor, following: Tensor) -> list[int]:
        """Gives each row what a verify pass brought; returns the places that go on.

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
        return self.leave()

    def leave(self) -> list[int]:
        """Lets finished rows leave the work; returns the places of those that stay."""
        staying = [place for place, output in enumerate(self.active) if output.finish is None]
        if len(staying) < len(self.session.rows):
            self.session.keep(staying)
            self.sampler.keep(staying)
        return staying

    def tell(
        self,
        place: int,
        rejected: Sequence[int] = (),
        block: Sequence[int | None] = (),
        committed_by: Sequence[int] = (),
        drafted: Sequence[bool] = (),
    ) -> None:
        """Tells the observer how the row at `place` stands; the last three say it of a block at work."""
        if self.observer is None:
            return
        output = self.active[place]
        self.observer(
            Progress(
                row=self.session.rows[place],
                tokens=tuple(output.tokens),
                block=tuple(block),
                rejected=tuple(rejected),
                finished=output.finish is not None,
                committed_by=(*output.committed_by, *committed_by),
                drafted=(*output.drafted, *drafted),
            )
        )

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
        )
