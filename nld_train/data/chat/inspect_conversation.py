"""`nld-data inspect PREFIX --conversation N`: prompts and answers of a conversation, its blocks and masked tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from nld_train.data.chat_set import ChatSet
from nld_train.data.packed import PackedTokens
from nld_train.data.pictures.inspect_pictures import image_tokens_of_set, save_pictures
from nld_train.data.shown_tokens import TokenText
from nld_train.errors import UserError
from nld_train.masking.answer_blocks import answer_bounds

if TYPE_CHECKING:
    from nld_train.data.samples import SampleSettings
    from nld_train.masking.noise import Noise
    from nld_train.masking.noisy_stream import NoisyStream

_ANSWER, _BORDER = "green", "bold cyan"


def show_conversation(
    prefix: str,
    number: int,
    settings: SampleSettings,
    shown: TokenText,
    console: Console,
    pictures_folder: str | None = None,
) -> None:
    """Prints a conversation, as it is alone in a sample of its own length.

    Args:
        prefix: of a set of conversations.
        number: of the conversation, from 0, in file order.
        settings: of a sample, for its blocks and its noise.
        shown: makes text of tokens.
        console: prints.
        pictures_folder: where its pictures are saved; None for nowhere.

    Raises:
        UserError: there is no such conversation, the set cannot be read, or the folder cannot be written.
    """
    packed = _read(prefix, number)
    shown = shown.with_pictures(image_tokens_of_set(prefix), packed.pictures)
    stream, noise = _noisy(settings, number, packed)
    tokens, answers = packed.tokens[:-1], packed.answers
    assert answers is not None
    starts, ends = answer_bounds(answers[:-1], np.zeros(1, dtype=np.int64))
    console.print(
        f"conversation {number}: {len(tokens)} tokens, {len(starts)} answers of {answers.sum()} tokens; noisy stream: "
        f"{len(stream.blocks)} tokens in blocks of {settings.diffusion.block_size}, {noise.masked.sum()} of them "
        f"masked (masking probability {noise.probability[0]:.3f})",
        soft_wrap=True,
    )
    if pictures_folder is not None:
        save_pictures(packed.pictures, pictures_folder, number, console)
    position = 0
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True), 1):
        prompt = shown.of(tokens[position:start], _none(start - position), begin=position)
        _print(f"prompt: {start - position} tokens", prompt, console)
        _show_answer(index, start, end, stream, noise, tokens, shown, console)
        position = end
    if position < len(tokens):
        rest = len(tokens) - position
        _print(f"after the last answer: {rest} tokens", shown.of(tokens[position:], _none(rest)), console)


def _read(prefix: str, number: int) -> PackedTokens:
    """A conversation as a sample of its own length: the next token belongs to none."""
    chat = ChatSet(prefix)
    if not 0 <= number < chat.documents:
        raise UserError(f"--conversation {number}: {prefix} holds conversations 0 to {chat.documents - 1}")
    span = chat.span(number)
    tokens, answers = chat.read(*span)
    return PackedTokens(
        tokens=np.append(tokens, 0),
        documents=np.append(np.zeros(len(tokens), dtype=np.int64), 1),
        answers=np.append(answers, False),
        pictures=tuple(chat.pictures(*span)),
    )


def _noisy(settings: SampleSettings, number: int, packed: PackedTokens) -> tuple[NoisyStream, Noise]:
    """All blocks of the answers, under noise."""
    from nld_train.data.samples import draw_noisy_stream
    from nld_train.masking.noisy_stream import answer_stream

    diffusion, answers = settings.diffusion, packed.answers
    assert answers is not None
    whole = answer_stream(packed.documents[:-1], answers[:-1], diffusion.block_size, diffusion.blocks, diffusion.fill)
    return draw_noisy_stream(replace(settings, noisy_length=len(whole.blocks)), number, packed)


def _show_answer(
    index: int,
    start: int,
    end: int,
    stream: NoisyStream,
    noise: Noise,
    tokens: NDArray[np.int64],
    shown: TokenText,
    console: Console,
) -> None:
    """One answer with borders between its blocks, and how much of its fill is masked."""
    inside = np.flatnonzero((stream.sources >= start) & (stream.sources < end))
    blocks, masked = stream.blocks[inside], noise.masked[inside]
    fill = (stream.blocks == blocks[-1]) & (stream.sources < 0)
    text = Text()
    for begin, stop in pairwise([0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(inside)]):
        text.append("│" if begin else "", style=_BORDER)
        text.append_text(shown.of(tokens[start + begin : start + stop], masked[begin:stop], _ANSWER))
    described = f"answer {index}: {end - start} tokens, {masked.sum()} masked; blocks: {len(set(blocks.tolist()))}"
    if fill.any():
        described += f"; fill: {fill.sum()}, {(fill & noise.masked).sum()} masked"
    _print(described, text, console)


def _print(title: str, text: Text, console: Console) -> None:
    console.rule(title, style="cyan", align="left")
    console.print(text, soft_wrap=True)


def _none(length: int) -> NDArray[np.bool_]:
    return np.zeros(length, dtype=bool)
