"""How many tokens each conversation of a chat set has in the clean and in the noisy stream; imports no torch.

The set is read once, in file order and in chunks: the borders of its conversations from the `.idx`, and the bits that
say which tokens are answers. The tokens themselves are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nld_train.data.chat_set import ChatSet
from nld_train.data.token_index import document_spans
from nld_train.errors import UserError
from nld_train.masking.answer_blocks import BlockOrigin, answer_bounds, block_bounds
from nld_train.progress import Advance

LongConversations = Literal["leave_out", "shorten"]
# A conversation: its first token and its length in the set, and its tokens in both streams of a sample, 0 where it is
# left out.
LENGTHS = np.dtype([("start", "<i8"), ("length", "<i4"), ("clean", "<i4"), ("noisy", "<i4")])
_LONGEST = np.iinfo(np.int32).max
_CHUNK_TOKENS = 1 << 22
# Conversations, spread evenly over a set, from which its figures are estimated: a standard error below 2 %.
_SAMPLED = 4096


@dataclass(frozen=True)
class ConversationPacking:
    """What decides how conversations become samples.

    Attributes:
        sequence_length: L, clean tokens of a sample.
        noisy_length: N, noisy tokens of a sample; 0: there is no noisy stream.
        block_size: B.
        blocks: whether blocks are counted from the start of each answer, or of the conversation.
        fill: whether the last block of each answer is filled up to B tokens.
        long: what happens to a conversation of more than L tokens: `leave_out`, or `shorten` by whole turns from the
            front.
    """

    sequence_length: int
    noisy_length: int
    block_size: int
    blocks: BlockOrigin = "answer"
    fill: bool = True
    long: LongConversations = "leave_out"


@dataclass(frozen=True)
class PackingFacts:
    """What became of the conversations of a set. Tokens are those of all samples of one epoch.

    Attributes:
        conversations: in the set.
        used: in the samples, the shortened ones among them.
        too_long: left out, because they have more tokens than a sample.
        without_answers: left out.
        shortened: by whole turns from the front.
        over_capacity: whose answers alone have more noisy tokens than a sample; the surplus blocks are left out.
        samples: of one epoch.
        clean_tokens: in the clean streams, without padding.
        noisy_tokens: in the noisy streams, fill included, without padding.
        sequence_length: L.
        noisy_length: N.
    """

    conversations: int
    used: int
    too_long: int
    without_answers: int
    shortened: int
    over_capacity: int
    samples: int
    clean_tokens: int
    noisy_tokens: int
    sequence_length: int
    noisy_length: int

    @property
    def left_out(self) -> int:
        """Conversations that are in no sample."""
        return self.conversations - self.used

    @property
    def clean_fill_rate(self) -> float:
        """Tokens of conversations as a fraction of the clean streams."""
        return self.clean_tokens / (self.samples * self.sequence_length)

    @property
    def noisy_fill_rate(self) -> float:
        """Tokens of blocks as a fraction of the noisy streams; 0 where there is no noisy stream."""
        return self.noisy_tokens / max(1, self.samples * self.noisy_length)

    def described(self) -> str:
        """The facts in a line."""
        left_out = [f"{self.too_long:,} longer than {self.sequence_length:,} tokens"] * (self.too_long > 0)
        left_out += [f"{self.without_answers:,} without an answer"] * (self.without_answers > 0)
        parts = [f"{self.used:,} conversations in {self.samples:,} samples"]
        parts += [f"left out: {', '.join(left_out)}"] * bool(left_out)
        parts += [f"{self.shortened:,} shortened by whole turns from the front"] * (self.shortened > 0)
        parts += [f"{self.clean_fill_rate:.1%} of the clean stream used"]
        if self.noisy_length:
            parts += [f"{self.noisy_fill_rate:.1%} of the noisy stream of {self.noisy_length:,} tokens"]
        if self.over_capacity:
            parts += [f"{self.over_capacity:,} have more blocks than that, and lose some at random"]
        return "; ".join(parts)


@dataclass
class Tally:
    """Counts of the conversations that were measured, see `PackingFacts`; `shortest` is the least length that has an
    answer, or None."""

    conversations: int = 0
    used: int = 0
    too_long: int = 0
    without_answers: int = 0
    shortened: int = 0
    over_capacity: int = 0
    clean_tokens: int = 0
    noisy_tokens: int = 0
    shortest: int | None = None

    def add(self, other: Tally) -> None:
        """Adds the counts of other conversations."""
        lengths = [each.shortest for each in (self, other) if each.shortest is not None]
        for field in fields(self)[:-1]:
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.shortest = min(lengths, default=None)


def measure(
    chat: ChatSet, packing: ConversationPacking, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.void], Tally]:
    """Lengths of adjacent conversations, `LENGTHS` `[n]`, and what becomes of them.

    Args:
        chat: the set.
        packing: how its conversations are packed.
        starts: first token of each conversation, ascending, `[n]`.
        lengths: tokens of each, `[n]`.
    """
    found, tally = np.zeros(len(starts), LENGTHS), Tally(conversations=len(starts))
    found["start"], found["length"] = starts, np.minimum(lengths, _LONGEST)
    long = lengths > packing.sequence_length
    noisy, answered = np.zeros(len(starts), np.int64), np.zeros(len(starts), bool)
    for part in _chunks(starts, lengths):
        bits = chat.answers.read(int(starts[part][0]), int(lengths[part].sum()))
        noisy[part], answered[part] = _noisy_lengths(bits, starts[part] - starts[part][0], packing)
    used, clean = answered & ~long, lengths.copy()
    if packing.long == "shorten":
        for each in np.flatnonzero(long & answered & (lengths <= _LONGEST)):
            if pieces := chat.pieces(int(starts[each]), int(lengths[each]), packing.sequence_length):
                kept = np.concatenate([chat.answers.read(*piece) for piece in pieces])
                noisy[each] = _noisy_lengths(kept, np.zeros(1, np.int64), packing)[0][0]
                clean[each], used[each] = len(kept), True
    tally.shortest = int(lengths[answered].min()) if answered.any() else None
    tally.used, tally.without_answers = int(used.sum()), int((~answered).sum())
    tally.too_long, tally.shortened = int((answered & ~used).sum()), int((used & long).sum())
    tally.over_capacity = int((used & (noisy > packing.noisy_length)).sum()) if packing.noisy_length else 0
    found["clean"] = np.where(used, clean, 0)
    found["noisy"] = np.where(used, np.minimum(noisy, packing.noisy_length), 0)
    tally.clean_tokens, tally.noisy_tokens = int(found["clean"].sum()), int(found["noisy"].sum())
    return found, tally


def _chunks(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of conversations of at most some million tokens, or of one conversation."""
    begin, ends = 0, starts + lengths
    while begin < len(starts):
        end = max(begin + 1, int(np.searchsorted(ends, starts[begin] + _CHUNK_TOKENS, "right")))
        yield slice(begin, end)
        begin = end


def _noisy_lengths(
    answers: NDArray[np.bool_], conversations: NDArray[np.int64], packing: ConversationPacking
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Noisy tokens of each conversation, int64 `[n]`, and whether it has an answer.

    Args:
        answers: bool `[T]`, of adjacent conversations.
        conversations: ascending int64 `[n]`, the first token of each, the first of them 0.
        packing: blocks and fill.
    """
    starts, ends = answer_bounds(answers, conversations)
    owners = np.searchsorted(conversations, starts, "right") - 1
    bounds = starts, ends, conversations[owners]
    _, lengths = block_bounds(*bounds, packing.block_size, packing.blocks, packing.fill)
    sums = np.concatenate([[0], np.cumsum(lengths)])
    first, last = (np.searchsorted(owners, np.arange(len(conversations)), side) for side in ("left", "right"))
    return sums[last] - sums[first], last > first


def measure_evenly(prefix: str, packing: ConversationPacking) -> tuple[NDArray[np.void], Tally]:
    """`measure` for some thousand conversations that are spread evenly over a set, or all of a smaller one.

    Raises:
        UserError: a file of the set is missing, truncated, or not what it should be.
    """
    chat, tally, found = ChatSet(prefix), Tally(), []
    for document in np.unique(np.arange(_SAMPLED) * chat.documents // _SAMPLED).tolist():
        start, length = chat.span(document)
        row, counts = measure(chat, packing, np.array([start]), np.array([length]))
        found.append(row)
        tally.add(counts)
    return np.concatenate(found), tally


def mean_noisy_ratio(prefix: str, block_size: int, blocks: BlockOrigin, fill: bool) -> float:
    """Noisy tokens per clean token of a chat set, from at most 4096 conversations that are spread evenly over it.

    Args:
        prefix: path of the set without suffix.
        block_size: B.
        blocks: whether blocks are counted from the start of each answer, or of the conversation.
        fill: whether the last block of each answer is filled up to B tokens.

    Raises:
        UserError: a file of the set is missing, truncated, or not what it should be; or no conversation has an answer.
    """
    _, tally = measure_evenly(prefix, ConversationPacking(_LONGEST, _LONGEST, block_size, blocks, fill))
    if not tally.clean_tokens:
        raise UserError(f"{prefix}: none of {tally.conversations:,} conversations has an answer")
    return tally.noisy_tokens / tally.clean_tokens


def measure_range(
    prefix: str, packing: ConversationPacking, documents: range, advance: Advance = lambda count: None
) -> Iterator[tuple[NDArray[np.void], Tally]]:
    """`measure` for a range of the conversations of a set, some ten thousand at a time."""
    chat = ChatSet(prefix)
    for starts, lengths in document_spans(prefix, advance, documents):
        if len(starts):
            yield measure(chat, packing, starts, lengths)
