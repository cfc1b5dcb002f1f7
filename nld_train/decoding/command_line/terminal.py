"""Decoded text on a terminal, finished or growing, coloured by the pass that committed each token."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from nld_train.console import plain_console
from nld_train.decoding.algorithms.options import Mode
from nld_train.decoding.algorithms.outputs import Progress
from nld_train.printable import printable

# Tokens of one denoising pass have one colour; neighbouring passes differ.
_PASSES = ("cyan", "green", "yellow", "magenta", "blue", "red")
_DRAFTED, _PREDICTED, _REJECTED, _PROMPT = "green", "", "red strike", "dim"
_MASKED = "\u2591"
_REFRESH_SECONDS = 0.08
_PIPE_WIDTH = 120
# No character has more tokens than bytes.
_LONGEST_CHARACTER = 4

Decode = Callable[[list[int]], str]


def report_console(errors: bool = False) -> Console:
    """A console for tables: as wide as the terminal or COLUMNS; 120 wide for a file or a pipe.

    Args:
        errors: on standard error in place of standard output.
    """
    return plain_console(width=shutil.get_terminal_size((_PIPE_WIDTH, 0)).columns, stderr=errors)


def numeric(name: str) -> Column:
    """A column of figures, which are never wrapped; its name may be."""
    return Column(name, justify="right", min_width=max(map(len, name.split())))


def print_sequence(console: Console, tokenizer: Any, mode: Mode, prompt: str, ended: Progress) -> None:
    """Prints a prompt and its finished continuation, coloured by the pass that committed each token."""
    styles = styles_of(mode, ended.committed_by, ended.drafted)
    console.print(_prompt(prompt) + coloured(_decode_of(tokenizer), ended.tokens, styles))


def styles_of(mode: Mode, committed_by: Sequence[int], drafted: Sequence[bool]) -> list[str]:
    """The style of each token, the same while a sequence grows and when it has finished."""
    return [_style(mode, number, was_drafted) for number, was_drafted in zip(committed_by, drafted, strict=True)]


def _style(mode: Mode, number: int, drafted: bool) -> str:
    if mode == "diffusion":
        return _PASSES[number % len(_PASSES)] if drafted else _PREDICTED
    return _DRAFTED if drafted else _PREDICTED


def _prompt(text: str) -> Text:
    # As a span: the style of a whole text would also apply to appended text.
    return Text().append(printable(text), _PROMPT)


def _decode_of(tokenizer: Any) -> Decode:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def coloured(decode: Decode, token_ids: Sequence[int], styles: Sequence[str]) -> Text:
    """Text of some tokens, each in its style."""
    text = Text()
    for piece, style in zip(pieces(decode, token_ids), styles, strict=True):
        text.append(printable(piece), style)
    return text


def pieces(decode: Decode, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds; a character of several tokens belongs to the one that completes it.

    A token is decoded together with the piece before it, since some tokenizers drop a space at the beginning of a text.
    """
    found: list[str] = []
    before = start = 0
    for end in range(1, len(token_ids) + 1):
        known = decode(list(token_ids[before:start]))
        piece = decode(list(token_ids[before:end]))[len(known) :]
        if piece.endswith("\ufffd") and end - start < _LONGEST_CHARACTER and end < len(token_ids):
            found.append("")
            continue
        found.append(piece)
        before, start = start, end
    return found


class SequenceView:
    """The current state of one sequence: its tokens, masks among them, and their styles."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.tokens: list[int | None] = []
        self.styles: list[str] = []
        self.rejected: tuple[int, ...] = ()

    def update(self, progress: Progress) -> None:
        """Updates the state after a forward."""
        self.tokens = [*progress.tokens, *progress.block]
        self.styles = styles_of(self.mode, progress.committed_by, progress.drafted)
        self.rejected = progress.rejected

    def render(self, decode: Decode) -> Text:
        """The sequence as text, followed by rejected drafts."""
        text = Text()
        run: list[int] = []
        styles: list[str] = []
        for token, style in zip(self.tokens, self.styles, strict=True):
            if token is not None:
                run.append(token)
                styles.append(style)
                continue
            text.append_text(coloured(decode, run, styles))
            run, styles = [], []
            text.append(_MASKED, _PROMPT)
        text.append_text(coloured(decode, run, styles))
        return text.append_text(coloured(decode, self.rejected, [_REJECTED] * len(self.rejected)))


class Watcher:
    """An observer that shows the active sequences while they grow and clears them at the end.

    Args:
        console: a terminal.
        tokenizer: of `transformers`.
        mode: of the decoder.
        prompts: texts of the prompts.
    """

    def __init__(self, console: Console, tokenizer: Any, mode: Mode, prompts: Sequence[str]) -> None:
        self._console, self._tokenizer, self._mode = console, tokenizer, mode
        self._decode = _decode_of(tokenizer)
        self._prompts = prompts
        self._sequences: dict[int, SequenceView] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = 0.0

    def __enter__(self) -> Watcher:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """See `outputs.Observer`."""
        if progress.finish is None:
            self._sequences.setdefault(progress.sequence, SequenceView(self._mode)).update(progress)
        else:
            self._sequences.pop(progress.sequence, None)
        # At once when a sequence has finished: once that is printed, it must not be shown twice.
        if progress.finish is not None or time.perf_counter() - self._shown > _REFRESH_SECONDS:
            self._show()

    def print(self, ended: Progress) -> None:
        """Prints a finished sequence permanently, above the active ones."""
        print_sequence(self._console, self._tokenizer, self._mode, self._prompts[ended.sequence], ended)

    def _show(self) -> None:
        active = sorted(self._sequences.items())
        texts = [_prompt(self._prompts[number]) + view.render(self._decode) for number, view in active]
        self._live.update(Screen(texts), refresh=True)
        self._shown = time.perf_counter()


class Screen:
    """Growing texts, one below the other; only their ends if they are longer than the screen.

    Args:
        texts: of the sequences.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See `rich`: the lines that fit."""
        # A console that leaves long lines to the terminal would cut them off here, where lines are counted.
        folded = options.update(no_wrap=False, overflow="fold")
        shown = [console.render_lines(text, folded, pad=False) for text in self._texts]
        if sum(map(len, shown)) > console.height:
            shown = shown[: console.height]
            height = console.height // max(1, len(shown))
            shown = [lines[-height:] for lines in shown]
        for lines in shown:
            for line in lines:
                yield from line
                yield Segment.line()
