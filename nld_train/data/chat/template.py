"""Conversations rendered by a chat template, through transformers' own compiler and sandbox.

Text of a conversation never becomes a special token: a message that spells `</s>` stays text, as in all prepared data.
The strings of special tokens in messages are marked before the template is rendered; where a mark comes out, the
text is cut, and its parts are encoded one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from nld_train.errors import UserError, first_line

# Private-use characters around the string of a special token in a message.
_BEGIN, _END = "\U000f0000", "\U000f0001"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation.

    Attributes:
        text: what the template wrote.
        spans: begin and end in the text of each `{% generation %}` block.
        cuts: where the text is cut before it is encoded: within strings of special tokens that are text.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    cuts: tuple[int, ...] = ()

    @property
    def pieces(self) -> list[str]:
        """The text, cut."""
        return [self.text[begin:end] for begin, end in pairwise((0, *self.cuts, len(self.text)))]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what does not depend on the conversation.

    Attributes:
        source: its text.
        variables: the tokenizer's special tokens by name (`bos_token`, ..) and further arguments.
        special: strings of the special tokens.
    """

    source: str
    variables: dict[str, Any]
    special: tuple[str, ...]

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself which text is generated."""
        return _GENERATION.search(self.source) is not None

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        arguments: dict[str, Any],
        prompt: bool,
        where: object,
    ) -> Rendering:
        """Renders messages.

        Args:
            messages: of a conversation, or its first ones.
            tools: descriptions of tools.
            arguments: further arguments, which override `variables`.
            prompt: whether the generation prompt follows them.
            where: file and row, for messages of errors.

        Raises:
            UserError: the template fails, or refuses the conversation.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        given = {**self.variables, **arguments}
        try:
            texts, spans = render_jinja_template(
                [_marked(list(messages), self._special)],
                tools=_marked(tools, self._special),
                chat_template=self.source,
                return_assistant_tokens_mask=self.marks_answers,
                add_generation_prompt=prompt,
                **given,
            )
        except Exception as error:  # a template is a program, which can fail in any way
            raise UserError(f"{where}: the chat template refuses the conversation: {first_line(error)}") from error
        return _without_marks(Rendering(texts[0], tuple(spans[0]) if spans else ()))

    def is_text(self, text: str) -> bool:
        """Whether there is anything in a text but special tokens and white space."""
        return bool(self._special.sub("", text).strip())

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def check_template(source: str, name: str) -> None:
    """Refuses a template that Jinja cannot compile.

    Raises:
        UserError: names the line.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([[]], chat_template=source)
    except TemplateSyntaxError as error:
        raise UserError(f"{name}, line {error.lineno}: is no chat template: {error.message}") from error
    except Exception:  # it compiles; it need not accept a conversation without messages
        return


def _marked(value: Any, special: re.Pattern[str]) -> Any:
    """A JSON value in whose texts the strings of special tokens are marked; the keys of objects are not."""
    if isinstance(value, str):
        if special.search(value) is None:
            return value
        return special.sub(rf"{_BEGIN}\g<0>{_END}", value.replace(_BEGIN, "").replace(_END, ""))
    if isinstance(value, dict):
        return {key: _marked(item, special) for key, item in value.items()}
    return [_marked(item, special) for item in value] if isinstance(value, list) else value


def _without_marks(rendering: Rendering) -> Rendering:
    """The text without marks, cut after the first character behind each beginning mark."""
    if _BEGIN not in rendering.text and _END not in rendering.text:
        return rendering
    marks = [found.start() for found in re.finditer(f"[{_BEGIN}{_END}]", rendering.text)]
    moved = {mark: mark - number for number, mark in enumerate(marks)}
    text = rendering.text.replace(_BEGIN, "").replace(_END, "")
    cuts = (at + 1 for mark, at in moved.items() if rendering.text[mark] == _BEGIN)

    def position(character: int) -> int:
        return character - sum(mark < character for mark in marks)

    spans = tuple((position(begin), position(end)) for begin, end in rendering.spans)
    return Rendering(text, spans, tuple(cut for cut in cuts if 0 < cut < len(text)))
