"""Which text of a rendered conversation is an answer, and which of its turns are rendered together.

The turn of an assistant begins where the generation prompt ends and ends where the rendering of all messages up to it
ends. Where the template has `{% generation %}` blocks they say what is generated, within the turn: what the generation
prompt supplies is no part of an answer even there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nld_train.data.chat.rows import Conversation
from nld_train.data.chat.template import ChatTemplate, Rendering
from nld_train.data.pictures.expand import IMAGE
from nld_train.data.pictures.references import Picture
from nld_train.data.records import Within
from nld_train.errors import UserError

Answers = Literal["all", "last", "each"]
ANSWERS = get_args(Answers)
# Characters that a template writes before the text of a message, at most.
_HEADER = 1000


@dataclass(frozen=True)
class AnswerText:
    """An answer in the text of a rendering.

    Attributes:
        begin: of its first character.
        end: behind its last character.
        turn_end: behind the turn; what is between is the end-of-turn token where the template does not generate it.
        message: number of its message in the conversation, from 1.
    """

    begin: int
    end: int
    turn_end: int
    message: int


@dataclass(frozen=True)
class RenderedAnswers:
    """A rendered conversation, or the first turns of one, with its answers.

    Attributes:
        rendering: the whole text.
        answers: in order; they do not overlap.
        where: file and row, for messages.
        user_turns: where the turns of the user begin in the text; empty where there are not two of them, or where the
            text does not begin with the rendering of what is before one of them.
        pictures: of its messages, in order.
    """

    rendering: Rendering
    answers: tuple[AnswerText, ...]
    where: object
    user_turns: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()


def rendered_answers(conversation: Conversation, template: ChatTemplate, answers: Answers) -> Iterator[RenderedAnswers]:
    """Renders a conversation up to its last answer; what follows that is learned by nothing.

    Args:
        conversation: one row.
        template: that renders it.
        answers: `all` learns every answer of one rendering, `last` only the last one; `each` renders the conversation
            up to each of its answers and learns that one, as in decoding, where a template may leave something of
            earlier turns out.

    Yields:
        One rendering, several for `each`, none for a conversation without answers.

    Raises:
        UserError: the template fails, or does not continue its own rendering of the first turns.
    """
    learned = [number for number, message in enumerate(conversation.messages) if message.is_answer]
    if not learned:
        return
    groups = {"all": [learned], "last": [learned[-1:]], "each": [[number] for number in learned]}[answers]
    for group in groups:
        yield _Turns(conversation, template, group[-1]).rendered(group)


def _as_text(content: Any) -> str:
    """The content of a message as templates write it: a text, parts of texts and pictures, or nothing."""
    if not isinstance(content, list):
        return content or ""
    return "".join(part.get("text", IMAGE) for part in content)


class _Turns:
    """Renderings of a conversation's first messages, up to message `last`."""

    def __init__(self, conversation: Conversation, template: ChatTemplate, last: int) -> None:
        self._conversation, self._template = conversation, template
        self._messages = [message.content for message in conversation.messages[: last + 1]]
        self._pictures = tuple(each for message in conversation.messages[: last + 1] for each in message.pictures)
        self._renderings: dict[tuple[int, bool], Rendering] = {}
        self._whole = self._render(last + 1, prompt=False)

    def rendered(self, learned: Sequence[int]) -> RenderedAnswers:
        """The whole rendering with the answers of some messages."""
        marked = self._marked() if self._template.marks_answers else None
        found = [
            answer
            for number in learned
            for answer in (self._turn(number) if marked is None else self._marked_answers(number, marked[number]))
        ]
        return RenderedAnswers(self._whole, tuple(found), self._conversation.where, self._user_turns(), self._pictures)

    def _user_turns(self) -> tuple[int, ...]:
        turns = [number for number, message in enumerate(self._messages) if message["role"] == "user"]
        if len(turns) < 2:
            return ()
        try:
            later = [self._length_of_prefix(self._render(number, prompt=False)) for number in turns[1:]]
        except UserError:  # a template may refuse the first messages of a conversation
            return ()
        first = None if later[0] is None else self._first_user_turn(turns[0], turns[1], later[0])
        begins = [begin for begin in (first, *later) if begin is not None]
        return tuple(begins) if len(begins) == len(turns) else ()

    def _first_user_turn(self, first: int, second: int, begin: int) -> int | None:
        """Where the first turn of the user begins: what is written before its text is what is before the second one's.

        The rendering of the messages before it is no help: there may be none, which templates refuse, and a template
        can write a system prompt of its own before the first message.

        Args:
            first: number of the message.
            second: number of the next message of the user.
            begin: where that one begins.
        """
        whole = self._whole.text
        contents = [self._messages[number].get("content") for number in (first, second)]
        for written in (str, str.strip):  # templates may strip white space
            own, other = (written(_as_text(content)) for content in contents)
            for match in re.finditer(f"(?={re.escape(other)})", whole[begin : begin + len(other) + _HEADER]):
                header = whole[begin : begin + match.start()]
                if header.strip() and (found := whole.find(header + own, 0, begin)) >= 0:
                    return found
        return None

    def _turn(self, number: int) -> list[AnswerText]:
        """The answer of a message by a template that does not mark it."""
        begin, end = self._prompt_end(number), self._turn_end(number)
        if begin is None or end is None or end < begin:
            with_it = "before" if begin is None else "up to"
            raise UserError(
                f"{self._message(number)}: the rendering of the conversation does not begin with the rendering of the "
                f"messages {with_it} this answer, so the template writes earlier turns differently from the last one "
                "(as those that leave out earlier reasoning): give --answers each or last, or a template with "
                "{% generation %}"
            )
        return [AnswerText(begin, end, end, number + 1)]

    def _marked_answers(self, number: int, spans: Sequence[tuple[int, int]]) -> list[AnswerText]:
        """The answers of a message by the blocks that the template marks."""
        try:
            begin = self._prompt_end(number)
        except UserError:  # the template needs no prompt to say what is generated
            begin = None
        end = self._turn_end(number)
        found = []
        for index, (first, last) in enumerate(spans):
            if index == 0 and begin is not None:
                first = max(first, min(begin, last))
            turn_end = end if end is not None and index == len(spans) - 1 else last
            rest = self._whole.text[last:turn_end]
            if not (begin or 0) <= first <= last <= turn_end or self._template.is_text(rest):
                raise UserError(
                    f"{self._message(number)}: the template's {{% generation %}} block does not reach to the end of "
                    "the turn, or its position is unknown, as in a macro or a set block"
                )
            found.append(AnswerText(first, last, turn_end, number + 1))
        return found

    def _marked(self) -> dict[int, list[tuple[int, int]]]:
        """The `{% generation %}` blocks of each assistant message."""
        turns = [number for number, message in enumerate(self._messages) if message["role"] == "assistant"]
        spans = list(self._whole.spans)
        if len(spans) == len(turns):
            return {number: [span] for number, span in zip(turns, spans, strict=True)}
        borders = [len(self._render(number + 1, prompt=False).spans) for number in turns[:-1]] + [len(spans)]
        if borders != sorted(borders):
            raise UserError(
                f"{self._conversation.where}: the template marks other {{% generation %}} blocks as the conversation "
                "goes on: give --answers each or last"
            )
        return {number: spans[begin:end] for number, begin, end in zip(turns, [0, *borders[:-1]], borders, strict=True)}

    def _prompt_end(self, number: int) -> int | None:
        """Where the generation prompt before a message ends; None where the whole does not begin with it."""
        return self._length_of_prefix(self._render(number, prompt=True))

    def _turn_end(self, number: int) -> int | None:
        """Where a message ends; None where the whole does not begin with all up to it."""
        if number + 1 == len(self._messages):
            return len(self._whole.text)
        return self._length_of_prefix(self._render(number + 1, prompt=False))

    def _length_of_prefix(self, beginning: Rendering) -> int | None:
        return len(beginning.text) if self._whole.text.startswith(beginning.text) else None

    def _render(self, count: int, prompt: bool) -> Rendering:
        """The first messages."""
        if (found := self._renderings.get((count, prompt))) is None:
            conversation, whole = self._conversation, count == len(self._messages)
            where = conversation.where if whole else Within(conversation.where, f", first {count} messages")
            arguments: dict[str, Any] = conversation.template_arguments
            found = self._template.render(self._messages[:count], conversation.tools, arguments, prompt, where)
            self._renderings[count, prompt] = found
        return found

    def _message(self, number: int) -> Within:
        return Within(self._conversation.where, f": message {number + 1}")
