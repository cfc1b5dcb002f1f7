"""The sequences of one call and continuous batching: waiting prompts are admitted to freed slots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer, Progress, SequenceOutput
from nld_train.decoding.algorithms.sampling import TokenSampling
from nld_train.decoding.algorithms.session import Session
from nld_train.decoding.algorithms.thinking import ThinkingLimit
from nld_train.decoding.engines.engine import Engine


class Batch:
    """The state that every decode algorithm works on.

    Args:
        engine: the model.
        prompts: ids of each sequence, checked by `check_request`.
        options: settings of the call.
        slack: entries of the cache that a step may need beyond a sequence's text.
        slots: maximum number of active sequences; None for all.
        observer: notified of every sequence after each forward that changed it.
        kept: what the cache holds of a single prompt; see `Session`.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        options: DecodeOptions,
        slack: int,
        slots: int | None = None,
        observer: Observer | None = None,
        kept: KeptText | None = None,
    ) -> None:
        slots = len(prompts) if slots is None else min(slots, len(prompts))
        self.options = options
        self.observer = observer
        self.outputs = [SequenceOutput(options.max_new_tokens, options, number) for number in range(len(prompts))]
        longest = max(map(len, prompts)) + options.max_new_tokens
        self.session = Session(engine, prompts, slots, longest + slack, kept, options.cuda_graphs)
        self.sampling = TokenSampling(options, range(slots))
        self.thinking = ThinkingLimit(options)
        self.mask_token_id = engine.mask_token_id
        self._observing = 0.0
        self._waiting = deque(range(slots, len(prompts)))

    @property
    def slots(self) -> list[int]:
        """All slots, each with an active sequence."""
        return list(range(len(self.session.active)))

    @property
    def active(self) -> list[SequenceOutput]:
        """Outputs of the active sequences by slot."""
        return [self.outputs[sequence] for sequence in self.session.active]

    def output(self, slot: int) -> SequenceOutput:
        """Output of the sequence in a slot."""
        return self.outputs[self.session.active[slot]]

    def remaining(self) -> Tensor:
        """int64 `[a]`: new tokens that still fit into each active sequence."""
        return torch.tensor([output.remaining for output in self.active])

    def step_length(self, sizes: Tensor) -> int:
        """Tokens of a step over blocks of int64 `[a]` sizes: those of the longest; of a fixed step always B or 1."""
        longest = int(sizes.max())
        return self.options.block_length if self.session.fixed and longest > 1 else longest

    def forwards_so_far(self, slot: int) -> int:
        """Decode forwards of the sequence in `slot` until now."""
        return self.session.sequence_forwards[self.session.active[slot]]

    def prefill(self, slots: Sequence[int], masks: int = 0) -> Tensor:
        """Prefills the sequences in these slots; see `Session.prefill`."""
        for slot in slots:
            self.output(slot).began = self._now()
        return self.session.prefill(slots, masks)

    def commit_first(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Commits the token that the prefill predicted, int64 `[n]`, in the sequences in these slots."""
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            self.output(slot).commit([token], [0], [False])
            self.notify(slot)

    def first_tokens(self, slots: Sequence[int]) -> Tensor:
        """Prefills the sequences in these slots: int64 `[n]`, the token that each predicts, not committed yet."""
        numbers = self.sampling.at(slots).one_each().get("numbers")
        tokens = self.sampling.shaping.draw(self.prefill(slots), numbers)[:, 0].cpu()
        due = self.thinking.due_in((), (0,)) == 0
        return torch.full_like(tokens, self.thinking.end_token) if due else tokens

    def limit_thinking(self, drafts: Tensor, accepted: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
        """The result of a cycle (see `commit_cycle`), which ends with the end of thinking where that is due."""
        if self.options.max_thinking_tokens is None:
            return accepted, bonus
        accepted, bonus = accepted.clone(), bonus.clone()
        for slot, output in enumerate(self.active):
            new = [*drafts[slot, 1 : 1 + int(accepted[slot])].tolist(), int(bonus[slot])]
            at = self.thinking.due_in(output.tokens, new)
            if at is not None and at < len(new):
                accepted[slot], bonus[slot] = at, self.thinking.end_token
        return accepted, bonus

    def prefill_first_tokens(self, slots: Sequence[int]) -> Tensor:
        """Prefills the sequences in these slots and commits each one's first token: int64 `[n]`."""
        tokens = self.first_tokens(slots)
        self.commit_first(slots, tokens)
        return tokens

    def next_tokens(self, following: Tensor) -> Tensor:
        """Refills the slots: from int64 `[a]`, the last token of each sequence, to that of each active sequence."""
        while True:
            kept, admitted = self.refill_slots()
            following = following[kept]
            if not admitted:
                return following
            following[admitted] = self.prefill_first_tokens(admitted)

    def commit_cycle(self, drafts: Tensor, sizes: Tensor, accepted: Tensor, bonus: Tensor) -> None:
        """Commits the result of a verify pass in each sequence.

        Args:
            drafts: int64 `[a, T]`, column 0 already committed.
            sizes: int64 `[a]`, how many of them are real.
            accepted: int64 `[a]`, accepted drafts after column 0.
            bonus: int64 `[a]`, the bonus token after the accepted drafts.
        """
        # One conversion for all slots: reading a tensor number by number would take most of the time here.
        columns = zip(drafts.tolist(), sizes.tolist(), accepted.tolist(), bonus.tolist(), strict=True)
        for slot, (output, (row, size, good, token)) in enumerate(zip(self.active, columns, strict=True)):
            passes = [self.forwards_so_far(slot)] * (good + 1)
            kept = output.commit([*row[1 : 1 + good], token], passes, [True] * good + [False])
            output.accepted.append(kept)
            self.notify(slot, drafts=row[1:size], rejected=row[1 + good : size])

    def refill_slots(self) -> tuple[list[int], list[int]]:
        """Removes finished sequences and admits waiting prompts to their slots; other such slots are freed.

        Returns:
            The slots that are kept, and which of them, by their new numbers, have a sequence that must be prefilled.
        """
        kept: list[int] = []
        admitted: list[int] = []
        for slot, output in enumerate(self.active):
            if output.finish is not None:
                if not self._waiting:
                    self.session.end(slot, output.tokens)
                    continue
                sequence = self._waiting.popleft()
                self.session.admit(slot, sequence)
                self.sampling.admit(slot, sequence)
                admitted.append(len(kept))
            kept.append(slot)
        if len(kept) < len(self.session.active):
            self.session.keep_slots(kept)
            self.sampling.keep_slots(kept)
        return kept, admitted

    def notify(
        self,
        slot: int,
        drafts: Sequence[int] = (),
        rejected: Sequence[int] = (),
        block: Sequence[int | None] = (),
        committed_by: Sequence[int] = (),
        drafted: Sequence[bool] = (),
    ) -> None:
        """Passes the state of the sequence in `slot` to the observer; the last three describe an open block."""
        output = self.output(slot)
        if output.finish is not None:
            output.seconds = self._now() - output.began
        if self.observer is None:
            return
        begin = time.perf_counter()
        self.observer(
            Progress(
                sequence=self.session.active[slot],
                tokens=tuple(output.tokens),
                block=tuple(block),
                drafts=tuple(drafts),
                rejected=tuple(rejected),
                finish=output.finish,
                forwards=self.forwards_so_far(slot),
                seconds=output.seconds,
                committed_by=(*output.committed_by, *committed_by),
                drafted=(*output.drafted, *drafted),
            )
        )
        self._observing += time.perf_counter() - begin

    def _now(self) -> float:
        """Seconds on a clock that is stopped while the observer runs."""
        return time.perf_counter() - self._observing

    def result(self) -> DecodeResult:
        """The outputs of all sequences, after every sequence has finished."""
        return DecodeResult(
            token_ids=[output.tokens for output in self.outputs],
            finish=[output.finish or "length" for output in self.outputs],
            forwards=self.session.forwards,
            prefill=self.session.prefills,
            graph_forwards=self.session.graph_forwards,
            sequence_forwards=self.session.sequence_forwards,
            prefill_tokens=self.session.prefill_tokens,
            accepted=[output.accepted for output in self.outputs],
            committed_by=[output.committed_by for output in self.outputs],
            drafted=[output.drafted for output in self.outputs],
            seconds=[output.seconds for output in self.outputs],
        )
