"""Stop strings in a text that grows token by token; only its end is searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ToText = Callable[[Sequence[int]], str]

# The replacement character: the end of a text whose last character is incomplete.
_INCOMPLETE = "\ufffd"
# A new token can change this many characters before its own: tokenizers may remove spaces before punctuation.
_CHANGING = 8


def stopping(tokenizer: Any, strings: Sequence[str], stop_tokens: Sequence[int]) -> dict[str, Any]:
    """The decode options that end sequences at stop strings as well as at stop tokens.

    Args:
        tokenizer: of `transformers`.
        strings: texts, none empty.
        stop_tokens: ids that end a sequence in any case.

    Returns:
        `stop_tokens`, `stop_strings` and `to_text` of `DecodeOptions`. Decoded text has no special tokens, so a special
        token among the strings becomes a stop token.
    """
    vocabulary = tokenizer.get_added_vocab()
    special = [vocabulary[string] for string in strings if string in vocabulary]
    return {
        "stop_tokens": tuple(dict.fromkeys([*stop_tokens, *special])),
        "stop_strings": tuple(strings),
        "to_text": lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
    }


class StopStrings:
    """Finds the token that completes a stop string in the text of a sequence.

    Decoding the whole text for each token would take quadratic time. Only the last tokens are kept: enough for the
    longest stop string, and a few tokens of context before them, since tokenizers treat the beginning of a text
    differently. A character, or a run of byte tokens, must not be split: older tokens are dropped only where the text
    was complete, and only if the kept ones then decode to the same text as before.

    Args:
        strings: texts, none empty.
        to_text: turns ids into text.
    """

    def __init__(self, strings: Sequence[str], to_text: ToText) -> None:
        self._strings, self._to_text = tuple(strings), to_text
        self._reach = max(map(len, self._strings)) + _CHANGING
        # One invalid byte turns a whole run of byte tokens, however long, into replacement characters.
        self._needs_all = any(_INCOMPLETE in string for string in self._strings)
        self._tokens: list[int] = []
        # Characters at the beginning of the kept tokens' text that are context.
        self._context = 0
        # Points at which the text was complete: number of kept tokens and of characters of their text.
        self._complete: list[tuple[int, int]] = []

    def completed_by(self, token: int) -> bool:
        """Appends the next token; True where the text then contains a stop string."""
        before = self._complete[-1][1] if self._complete else 0
        self._tokens.append(token)
        text = self._to_text(self._tokens)
        if any(string in text[self._context :] for string in self._strings):
            return True
        # Not where the text has become shorter or is unchanged: special tokens, and removed spaces.
        if len(text) > before and not text.endswith(_INCOMPLETE):
            self._complete.append((len(self._tokens), len(text)))
            # Only here: an incomplete text may have more replacement characters than the complete text has characters.
            if len(text) - self._context > 2 * self._reach and not self._needs_all:
                self._drop_old(text)
        return False

    def _drop_old(self, text: str) -> None:
        """Drops tokens whose text is further back than any stop string reaches."""
        old = [(count, length) for count, length in self._complete if len(text) - length >= self._reach]
        if len(old) < 2:
            return
        (start, _), (border, length) = old[-2:]
        kept = self._tokens[start:]
        context = len(self._to_text(self._tokens[start:border]))
        if not context or self._to_text(kept)[context:] != text[length:]:
            return
        # The kept text may have lost a character at its beginning.
        shift = length - context
        self._complete = [(count - start, end - shift) for count, end in self._complete if count >= border]
        self._tokens, self._context = kept, context
