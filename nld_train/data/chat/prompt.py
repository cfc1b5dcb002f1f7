"""Conversations as prompts: a tokenizer's chat template with the generation prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nld_train.data.pictures.prompt import PromptPictures, references_of
from nld_train.data.text_ids import plain_ids
from nld_train.errors import UserError, first_line
from nld_train.outside_json import parse_object, read_bytes

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatFormat:
    """How conversations become prompts.

    Attributes:
        tokenizer: of `transformers`, with a chat template.
        arguments: of the template, such as `enable_thinking`.
        name: of one of the tokenizer's templates, where it has several; None for its default one.
        pictures: how pictures are read; None for a model that reads text alone.
    """

    tokenizer: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    pictures: PromptPictures | None = None

    def text(
        self,
        messages: Sequence[Message],
        where: str,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """A conversation as text, up to where the next answer begins.

        Args:
            messages: objects with `role` and `content`.
            where: what they are, for messages.
            tools: of the conversation, as JSON schemas.
            add_generation_prompt: whether the header of the next answer follows; without it the last message, an
                answer, is left open, to be continued.

        Raises:
            UserError: the template fails on them.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=None if tools is None else list(tools),
                chat_template=self.name,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.arguments,
            )
        except Exception as error:  # a template is a program, which can fail in any way
            raise UserError(f"{where}: the chat template fails: {first_line(error)}") from error
        return text

    def prompt(
        self, messages: Sequence[Message], where: str, tools: Sequence[Any] | None = None, folder: str = ""
    ) -> tuple[str, Sequence[int]]:
        """The `text` of messages with their pictures, and its ids: a template spells all special tokens.

        Args:
            messages: as of `text`; parts of their content may be pictures.
            where: what they are, for messages.
            tools: as of `text`.
            folder: from which relative paths of pictures start.

        Raises:
            UserError: the template fails on them; a picture cannot be read, or the model reads text alone.
        """
        plain, references = references_of(messages, where)
        text = self.text(plain, where, tools)
        return text, self.with_pictures(plain_ids(self.tokenizer, text), references, folder, where)

    def with_pictures(self, ids: Sequence[int], references: Sequence[Any], folder: str, where: str) -> Sequence[int]:
        """Ids with an `[IMG]` for each picture as a prompt; see `PromptPictures.prompt`.

        Raises:
            UserError: as there; or the model reads text alone.
        """
        if not references:
            return ids
        if self.pictures is None:
            raise UserError(f"{where}: holds a picture, and this model has no vision tower: it reads text alone")
        return self.pictures.prompt(ids, references, folder, where)


def require_template(tokenizer: Any, name: str | None, option: str) -> None:
    """Refuses a tokenizer without a chat template, or without the one of that name.

    Args:
        tokenizer: of `transformers`.
        name: of one of several templates; None for the default one.
        option: that needs the template, for the message.

    Raises:
        UserError: there is none.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{option}: the tokenizer has no chat template; name one with --chat-template FILE")
    names = list(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else []
    if name is not None and name not in names:
        has = f"its templates are {', '.join(names)}" if names else "it has one, without a name"
        raise UserError(f"{option}: the tokenizer has no chat template named {name!r}; {has}")


def read_template(path: Path) -> str:
    """A chat template from a file of Jinja.

    Raises:
        UserError: it cannot be read, is empty, or is not UTF-8.
    """
    try:
        text = read_bytes(path, f"--chat-template {path}").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"--chat-template {path}: is not UTF-8 at byte {error.start}") from error
    if not text.strip():
        raise UserError(f"--chat-template {path}: is empty")
    return text


def parse_arguments(text: str | None) -> dict[str, Any]:
    """The value of --chat-template-args: a JSON object with arguments of the template; none where it is not given.

    Raises:
        UserError: it is no JSON object.
    """
    return {} if text is None else parse_object(text, "--chat-template-args")
