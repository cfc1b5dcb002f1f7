"""Conversations as token ids, with the tokens that belong to answers.

The ids are those of transformers' `apply_chat_template`. An answer is a run of tokens between two borders of the text,
and each border is checked: the tokens before it must be those of the text before it alone, as decoding from the prompt
makes them. An answer ends with its end-of-turn token, the special token after its text. Ids play no part: that token is
learned where it is the padding token as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nld_train.data.chat.rows import Conversation
from nld_train.data.chat.template import ChatTemplate
from nld_train.data.chat.turns import Answers, AnswerText, RenderedAnswers, rendered_answers
from nld_train.data.pictures.expand import ImageTokens, expand
from nld_train.data.pictures.references import Picture
from nld_train.data.records import Within
from nld_train.data.tokenizer import EncoderSpec
from nld_train.errors import UserError

_CACHED_HEADERS, _HEADER = 4096, 256
_SHOWN = 30


@dataclass(frozen=True)
class ChatSpec:
    """Settings from which a worker process makes its encoder.

    Attributes:
        encoder: the tokenizer; nothing is put around a rendering, which is complete as it is.
        template: the chat template.
        answers: which assistant turns are learned.
        leave_out_bad_rows: whether rows that cannot be encoded are left out, and not refused.
        images: what becomes of pictures; None where conversations have none.
    """

    encoder: EncoderSpec
    template: ChatTemplate
    answers: Answers
    leave_out_bad_rows: bool = False
    images: ImageTokens | None = None


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation of `[tokens]`.

    Attributes:
        tokens: ids.
        answers: bool, whether each belongs to an answer.
        turns: bool, whether each is the first one of a turn of the user; nowhere in conversations with one such turn.
        pictures: in order.
        picture_starts: int64 `[pictures]`, the first token of each.
    """

    tokens: NDArray[np.integer[Any]]
    answers: NDArray[np.bool_]
    turns: NDArray[np.bool_]
    pictures: tuple[Picture, ...] = ()
    picture_starts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class ChatEncoder:
    """Turns conversations into ids with a mask of their answers."""

    def __init__(self, spec: ChatSpec) -> None:
        self._spec = spec
        self._tokenizer = Tokenizer.from_str(spec.encoder.definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = np.zeros(spec.encoder.vocabulary_size, dtype=bool)
        self._special[list(spec.encoder.forbidden)] = True
        self._anchor = self._special_string()
        self._cached_ids = lru_cache(_CACHED_HEADERS)(self._ids)

    def _special_string(self) -> str:
        """A special token that takes no white space from the text after it; empty where there is none."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return next((token.content for token in added if token.special and not token.rstrip), "")

    def encode(self, conversations: Sequence[Conversation]) -> list[list[EncodedConversation] | None]:
        """Each conversation as the documents that are made of it; those without an answer are left out.

        Returns:
            For each conversation a list, or None for one that is left out since it cannot be encoded.

        Raises:
            UserError: the template refuses a conversation, or an answer does not begin or end between two tokens.
        """
        rendered = [self._rendered(each) for each in conversations]
        encoded = self._encoded([rendering for each in rendered for rendering in each or ()])
        found = [None if each is None else [next(encoded) for _ in each] for each in rendered]
        return [
            None if row is None or None in row else [each for each in row if each is not None and each.answers.any()]
            for row in found
        ]

    def _rendered(self, conversation: Conversation) -> list[RenderedAnswers] | None:
        try:
            return list(rendered_answers(conversation, self._spec.template, self._spec.answers))
        except UserError:
            if not self._spec.leave_out_bad_rows:
                raise
            return None

    def _encoded(self, renderings: Sequence[RenderedAnswers]) -> Iterator[EncodedConversation | None]:
        """All renderings, encoded in one batch: the library does that in parallel where it may."""
        pieces = [
            self._anchor + piece if index else piece
            for each in renderings
            for index, piece in enumerate(each.rendering.pieces)
        ]
        encodings = iter(self._tokenizer.encode_batch(pieces, add_special_tokens=False))
        for each in renderings:
            own = [next(encodings) for _ in each.rendering.pieces]
            tokens = _Tokens(own, each.rendering.cuts, len(self._anchor), self._special)
            try:
                found = self._with_answers(each, tokens)
            except UserError:
                if not self._spec.leave_out_bad_rows:
                    raise
                yield None
            else:
                yield found

    def _with_answers(self, rendered: RenderedAnswers, tokens: _Tokens) -> EncodedConversation:
        answers, turns = np.zeros(len(tokens.ids), dtype=bool), np.zeros(len(tokens.ids), dtype=bool)
        for answer in rendered.answers:
            first = self._answer_border(answer.begin, rendered, tokens, answer)
            answers[first : self._end(answer, first, rendered, tokens)] = True
        begins = [self._border(character, rendered, tokens) for character in rendered.user_turns]
        known = [begin for begin in begins if begin is not None]
        if len(known) == len(begins):  # a conversation is cut at any of its turns, or at none
            turns[known] = True
        ids = tokens.ids.astype(self._spec.encoder.dtype)
        if self._spec.images is None:
            return EncodedConversation(ids, answers, turns)
        return _with_pictures(EncodedConversation(ids, answers, turns, rendered.pictures), self._spec.images, rendered)

    def _end(self, answer: AnswerText, first: int, rendered: RenderedAnswers, tokens: _Tokens) -> int:
        """Number of the token behind an answer: behind its end-of-turn token, where it has one."""
        text = rendered.rendering.text
        inside = [special for special in tokens.special if special.number >= first]
        # The template generates it, and perhaps white space after it, which decoding never reaches.
        ends = [special for special in inside if special.end <= answer.end]
        if ends and not text[ends[-1].end : answer.end].strip():
            return ends[-1].number + 1
        for special in inside:
            within = answer.end <= special.begin and special.end <= answer.turn_end
            if within and not text[answer.end : special.begin].strip():
                return special.number + 1
        return self._answer_border(answer.end, rendered, tokens, answer)

    def _answer_border(self, character: int, rendered: RenderedAnswers, tokens: _Tokens, answer: AnswerText) -> int:
        """As `_border`, where an answer begins or ends.

        Raises:
            UserError: there is no border between tokens.
        """
        if (number := self._border(character, rendered, tokens)) is not None:
            return number
        text, where = rendered.rendering.text, Within(rendered.where, f": message {answer.message}")
        shown = text[max(0, character - _SHOWN) : character], text[character : character + _SHOWN]
        raise UserError(
            f"{where}: the tokens of {shown[0]!r} are no prefix of those with {shown[1]!r} after it, so decoding "
            "never makes these tokens; a special token at this border of the template would keep them apart"
        )

    def _border(self, character: int, rendered: RenderedAnswers, tokens: _Tokens) -> int | None:
        """Number of tokens before a character; None where they are not the tokens of the text before it."""
        text = rendered.rendering.text
        if character == len(text):
            return len(tokens.ids)
        # Special tokens and cuts part the text: tokens after them do not depend on what is before.
        start, token, anchored = tokens.last_parting(character)
        before = self._ids_of((self._anchor if anchored else "") + text[start:character])[int(anchored) :]
        return token + len(before) if np.array_equal(tokens.ids[token : token + len(before)], before) else None

    def _ids_of(self, text: str) -> tuple[int, ...]:
        """Ids of the end of a prompt, which is the same header for most of them."""
        return self._cached_ids(text) if len(text) <= _HEADER else self._ids(text)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _with_pictures(encoded: EncodedConversation, images: ImageTokens, rendered: RenderedAnswers) -> EncodedConversation:
    """A conversation with as many tokens for each picture as its size makes of it, none of them an answer's."""
    expansion = expand(encoded.tokens, encoded.pictures, images, rendered.where)
    answers, turns = encoded.answers[expansion.source], encoded.turns[expansion.source]
    assert not answers[expansion.starts].any(), "a message of the assistant has no picture"
    assert not turns[expansion.starts].any(), "a turn begins with what the template writes before its content"
    tokens = expansion.ids.astype(encoded.tokens.dtype)
    return EncodedConversation(tokens, answers, turns, encoded.pictures, expansion.starts)


class _Special(NamedTuple):
    """A special token: its number in the rendering, its first character and the one behind it."""

    number: int
    begin: int
    end: int


class _Tokens:
    """The tokens of a rendering, of one piece or of several.

    Args:
        encodings: of the pieces.
        cuts: first characters of the pieces after the first one.
        anchor: characters of the special token that stands before each of these.
        special: whether each id is special.

    Attributes:
        ids: of all pieces, int64.
        special: the special tokens in order.
    """

    def __init__(self, encodings: Sequence[Any], cuts: Sequence[int], anchor: int, special: NDArray[np.bool_]) -> None:
        self.special: list[_Special] = []
        self._cuts: list[tuple[int, int]] = []  # first character and token of pieces after a cut
        ids: list[NDArray[np.int64]] = []
        number = 0
        for encoding, cut in zip(encodings, (None, *cuts), strict=True):
            skipped, moved = (0, 0) if cut is None else (1, cut - anchor)
            if cut is not None:
                self._cuts.append((cut, number))
            piece = np.array(encoding.ids, dtype=np.int64)
            for index in (skipped + np.flatnonzero(special[piece[skipped:]])).tolist():
                begin, end = encoding.token_to_chars(index)
                self.special.append(_Special(number + index - skipped, begin + moved, end + moved))
            ids.append(piece[skipped:])
            number += len(piece) - skipped
        self.ids = np.concatenate(ids)

    def last_parting(self, character: int) -> tuple[int, int, bool]:
        """The last special token or cut before a character.

        Returns:
            First character and token from which the text is encoded by itself, and whether that is a cut, after which
            it was encoded behind the anchor.
        """
        before = [(special.begin, special.number, False) for special in self.special if special.end <= character]
        cuts = [(cut, token, True) for cut, token in self._cuts if cut <= character]
        return max([(0, 0, False), *before[-1:], *cuts[-1:]])
