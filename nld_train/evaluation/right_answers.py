"""Which decoded answers are right, where a question has exactly one right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ExactMatch:
    """Compares decoded answers with the right ones: by their texts, or by their ids where there is no tokenizer.

    Attributes:
        stop_tokens: ids that end an answer. A decoded answer that does not end with one has been cut, and is wrong.
        tokenizer: of `transformers`. White space around a text does not count, nor how a text was tokenized.
    """

    stop_tokens: tuple[int, ...]
    tokenizer: Any = None

    def right(self, found: Sequence[Sequence[int]], answers: Sequence[Sequence[int] | str]) -> list[bool]:
        """Whether each decoded answer is the right one.

        Args:
            found: ids of each decoded answer, the one that ends it included.
            answers: text or ids of each right answer. Of ids, the first stop token and what is after it do not count.
                Ids without a stop token are of a chat template that ends a turn with ordinary text, after which
                nothing stops: there, what is decoded after as many tokens does not count.
        """
        return list(map(self._is_right, found, answers))

    def _is_right(self, found: Sequence[int], answer: Sequence[int] | str) -> bool:
        if isinstance(answer, str):
            assert self.tokenizer is not None, "a text is compared with a text"
            wanted: str | list[int] = answer.strip()
        else:
            end = self._end(answer)
            wanted = self._content(answer[:end])
            if end is None:
                return self._content(found[: len(answer)]) == wanted
        end = self._end(found)
        return end is not None and self._content(found[:end]) == wanted

    def _end(self, ids: Sequence[int]) -> int | None:
        """Index of the first stop token."""
        return next((index for index, token in enumerate(ids) if token in self.stop_tokens), None)

    def _content(self, ids: Sequence[int]) -> str | list[int]:
        if self.tokenizer is None:
            return list(ids)
        text: str = self.tokenizer.decode(ids)
        return text.strip()
