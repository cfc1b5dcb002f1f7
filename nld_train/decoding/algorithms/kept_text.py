"""The text whose keys and values stay in an engine's cache from one call of `decode` to the next, as in a chat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nld_train.decoding.engines.engine import Engine
from nld_train.model.vision.pictures import Pictures


class KeptText:
    """Belongs to one engine, whose cache nothing else may use between two calls; each call decodes one prompt.

    A prompt is compared with what the cache holds, token by token and picture by picture, and only what differs is
    computed: a chat template that rewrites earlier turns costs time, never a wrong token.

    Args:
        room: entries that the cache has beyond those that a call needs, up to the context: for the calls to come.
    """

    def __init__(self, room: int = 0) -> None:
        self._token_ids: list[int] = []
        self._pictures: list[Tensor] = []
        self._room, self._capacity = room, 0

    def begin(self, engine: Engine, prompt: Sequence[int], capacity: int) -> int:
        """Prepares the cache for a prompt: how many of its first tokens are in it, all but one at most.

        The last token of a prompt is always computed, since the logits after it are needed. A cache that has become too
        small is allocated anew with at least twice as many entries, so that this is rare in a long conversation.

        Args:
            engine: the same in every call.
            prompt: ids, with its pictures where it has some.
            capacity: entries that decoding needs.
        """
        if capacity > self._capacity:
            larger = max(capacity, min(max(capacity + self._room, 2 * self._capacity), engine.context_length))
            self._token_ids, self._capacity = [], 0
            engine.allocate(1, larger)
            self._capacity = larger
        # Where tokens see their whole block, they depend on tokens after them that may have changed.
        kept = 0 if engine.clean_stream.block is not None else min(self._common(prompt), len(prompt) - 1)
        if engine.image_tokens is not None:
            kept = engine.image_tokens.same(prompt, kept, self._pictures)
        self._token_ids = self._token_ids[:kept]
        return kept

    def _common(self, prompt: Sequence[int]) -> int:
        pairs = zip(self._token_ids, prompt, strict=False)
        return next((index for index, (kept, token) in enumerate(pairs) if kept != token), len(self._token_ids))

    def end(self, token_ids: Sequence[int], pictures: Pictures) -> None:
        """A call has ended with these tokens, of prompt and answer, and the prompt's pictures in the cache.

        Without it, after an interrupted call, there is what `begin` found.
        """
        self._token_ids, self._pictures = list(token_ids), pictures.each()
