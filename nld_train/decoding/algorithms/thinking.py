"""The limit of thinking: after so many new tokens the token that ends the thinking follows, unless it came before."""

from __future__ import annotations

from collections.abc import Sequence

from nld_train.decoding.algorithms.options import DecodeOptions


class ThinkingLimit:
    """`max_thinking_tokens` and `end_think_token` of `DecodeOptions`.

    Args:
        options: of the call.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self._limit, self._end = options.max_thinking_tokens, options.end_think_token

    def due_in(self, text: Sequence[int], following: Sequence[int]) -> int | None:
        """Index in `following`, the next tokens after the new tokens `text`, at which the end of thinking is due.

        None where it is not among them, and where too few tokens before it are known.
        """
        if self._limit is None or not 0 <= self._limit - len(text) <= len(following):
            return None
        at = self._limit - len(text)
        return None if self._end in (*text, *following[:at]) else at

    @property
    def end_token(self) -> int:
        """The token that ends the thinking, where there is a limit."""
        assert self._end is not None
        return self._end
