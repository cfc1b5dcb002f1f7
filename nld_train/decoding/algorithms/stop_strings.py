"""Stop strings in a text that grows token by token, found in its end alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ToText = Callable[[Sequence[int]], str]

# Stands at the end of a text whose last character is not complete.
_INCOMPLETE = "\ufffd"
# So many characters before a token's own can change with it: tokenizers may take out spaces before punctuation.
_CHANGING = 8


def stopping(tokenizer: Any, strings: Sequence[str], stop_tokens: Sequence[int]) -> dict[str, Any]:
    """The options of a decoder that stops at texts as well as at tokens.

    Args:
        tokenizer: of `transformers`.
        strings: texts, none empty.
        stop_tokens: ids that end a row in any case.

    Returns:
        `stop_tokens`, `stop_strings` and `to_text` of `DecodeOptions`. Special tokens leave no trace in a text: one
        that is named ends a row as a token.
    """
    vocabulary = tokenizer.get_added_vocab()
    special = [vocabulary[string] for string in strings if string in vocabulary]
    return {
        "stop_tokens": tuple(dict.fromkeys([*stop_tokens, *special])),
        "stop_strings": tuple(strings),
        "to_text": lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
    }


class StopStrings:
    """Tells the token that completes a stop string in a row's text.

    Decoding the whole text for each token would take quadratic time. Kept are the last tokens, whose text is longer
    than any stop string, behind a few that are there for their sake: tokenizers treat the beginning of a text
    otherwise, and a character, or a run of byte tokens, may not be cut. So tokens leave only where the text was
    complete, and only if what is kept then reads as it did before.

    Args:
        strings: texts, none empty.
        to_text: turns ids into text.
    """

    def __init__(self, strings: Sequence[str], to_text: ToText) -> None:
        self._strings, self._to_text = tuple(strings), to_text
        self._reach = max(map(len, self._strings)) + _CHANGING
        # One bad byte makes these signs of a whole run of byte tokens, however long.
        self._needs_all = any(_INCOMPLETE in string for string in self._strings)
        self._tokens: list[int] = []
        # Characters at the beginning of the kept tokens' text that are there for the others' sake.
        self._context = 0
        # Where the text was complete: numbers of kept tokens and of their text's characters.
        self._complete: list[tuple[int, int]] = []

    def completed_by(self, token: int) -> bool:
        """Takes the row's next token; True where the text with it holds a stop string."""
        before = self._complete[-1][1] if self._complete else 0
        self._tokens.append(token)
        text = self._to_text(self._tokens)
        if any(string in text[self._context :] for string in self._strings):
            return True
        # Not where the text has only become shorter, or stayed: special tokens, and spaces taken out.
        if len(text) > before and not text.endswith(_INCOMPLETE):
            self._complete.append((len(self._tokens), len(text)))
            # Not before: the signs of what is not complete are more than the characters that they become.
            if len(text) - self._context > 2 * self._reach and not self._needs_all:
                self._forget(text)
        return False

    def _forget(self, text: str) -> None:
        """Lets tokens go whose text lies further back than any stop string reaches."""
        old = [(count, length) for count, length in self._complete if len(text) - length >= self._reach]
        if len(old) < 2:
            return
        (start, _), (border, length) = old[-2:]
        kept = self._tokens[start:]
        context = len(self._to_text(self._tokens[start:border]))
        if not context or self._to_text(kept)[context:] != text[length:]:
            return
        # A character that stood at the beginning may be gone now.
        shift = length - context
        self._complete = [(count - start, place - shift) for count, place in self._complete if count >= border]
        self._tokens, self._context = kept, context
