"""From a command line to a request: prompts, a checkpoint, a commit policy."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.data.chat.prompt import ChatFormat, parse_arguments, require_template
from nld_train.data.pictures.prompt import marked, with_pictures
from nld_train.data.text_ids import text_ids
from nld_train.decoding.command_line.prompts import Prompt, read_prompts
from nld_train.decoding.layout import Layout
from nld_train.decoding.load import Source, find_source
from nld_train.decoding.policies.policy_declaration import PolicyOf
from nld_train.decoding.policies.registry import PolicySettings
from nld_train.errors import UserError


@contextmanager
def value_errors_as_user_errors() -> Iterator[None]:
    """The decoder's ValueErrors are mistakes in the request and become UserErrors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True)
class Request:
    """Prompts and the checkpoint to decode them with.

    Attributes:
        source: the checkpoint.
        texts: the prompts, conversations as the chat template renders them.
        prompts: ids of each, with its pictures where it has some.
        batch_size: maximum number of active sequences.
        continuations: ids of the true text after each prompt, None where it is not known; empty where none is.
    """

    source: Source
    texts: list[str]
    prompts: Sequence[Sequence[int]]
    batch_size: int
    continuations: Sequence[tuple[int, ...] | None] = ()


def read_request(arguments: Namespace) -> Request:
    """Finds prompts and checkpoint of a command line; reads no weights.

    Raises:
        UserError: one of them does not exist, the batch size is below 1, or a prompt cannot be rendered.
    """
    prompts = _read_prompts(arguments)
    check_batch_size(arguments)
    source = source_of(arguments)
    chat, system = getattr(arguments, "chat", False), getattr(arguments, "system", None)
    encoder = PromptEncoder(chat_format_of(arguments, source), chat, system)
    encoded = [encoder.encode(prompt) for prompt in prompts]
    return Request(
        source,
        [text for text, _ in encoded],
        [ids for _, ids in encoded],
        arguments.batch_size,
        [prompt.continuation for prompt in prompts],
    )


@dataclass(frozen=True)
class PromptEncoder:
    """Turns prompts into ids.

    Attributes:
        chat_format: of conversations.
        chat: whether a text is the first message of a conversation, not the beginning of a document.
        system: the system prompt of conversations that have none; None for none.
    """

    chat_format: ChatFormat
    chat: bool = False
    system: str | None = None

    def encode(self, prompt: Prompt) -> tuple[str, Sequence[int]]:
        """The text that the model reads, and its ids, with the pictures of a prompt that has some.

        Raises:
            UserError: a conversation without a chat template, or one that the template fails on; pictures that cannot
                be read, or that the model or the text has no placeholder for.
        """
        tokenizer, messages = self.chat_format.tokenizer, list(prompt.messages)
        if prompt.token_ids is not None:
            return prompt.text or "", list(prompt.token_ids)
        if self.chat and not messages:
            assert prompt.text is not None
            messages = [{"role": "user", "content": with_pictures(prompt.text, prompt.pictures, prompt.where)}]
        if not messages:
            assert prompt.text is not None
            text = marked(prompt.text, len(prompt.pictures), prompt.where) if prompt.pictures else prompt.text
            ids = text_ids(tokenizer, text)
            return text, self.chat_format.with_pictures(ids, prompt.pictures, prompt.folder, prompt.where)
        require_template(tokenizer, None, prompt.where)
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.chat_format.prompt(messages, prompt.where, prompt.tools, prompt.folder)


def chat_format_of(arguments: Namespace, source: Source) -> ChatFormat:
    """How a command line with the options of `commands.arguments.add_chat_format`, or without, renders conversations.

    Raises:
        UserError: --chat-template-args is no JSON object.
    """
    template_arguments = parse_arguments(getattr(arguments, "chat_template_args", None))
    return ChatFormat(source.tokenizer, template_arguments, pictures=source.pictures)


def source_of(arguments: Namespace) -> Source:
    """The checkpoint of a command line, with the tokenizer and the adapter that it names.

    Raises:
        UserError: what `load.find_source` refuses.
    """
    # Without a value, `--adapter` means the checkpoint's own; not every command has it.
    adapter = getattr(arguments, "adapter", None)
    named = Path(adapter) if isinstance(adapter, str) else None
    layout = layout_of(arguments)
    layout.require_one_model()
    template = getattr(arguments, "chat_template", None)
    return find_source(
        Path(arguments.checkpoint), arguments.tokenizer, named, layout, None if template is None else Path(template)
    )


def layout_of(arguments: Any) -> Layout:
    """The layout of `commands.arguments.add_layout`; one process for a command without these options.

    Raises:
        UserError: a number below 1.
    """
    return Layout(getattr(arguments, "tensor", 1), getattr(arguments, "pipeline", 1))


def check_batch_size(arguments: Namespace) -> None:
    """Refuses an empty batch.

    Raises:
        UserError: `--batch-size` below 1.
    """
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size: {arguments.batch_size} is not 1 or more")


def _read_prompts(arguments: Namespace) -> list[Prompt]:
    if arguments.prompts is None:
        if not arguments.prompt:
            raise UserError("--prompt: is empty")
        pictures = tuple(getattr(arguments, "image", ()))
        return [Prompt("--image" if pictures else "--prompt", arguments.prompt, pictures=pictures)]
    return read_prompts(Path(arguments.prompts))


def policy_of(arguments: Namespace, source: Source) -> PolicyOf:
    """The commit policy of a command line with the options of `commands.arguments.add_policy`.

    Raises:
        UserError: a value out of its range, an argument that the policy does not read, or a missing trained sampler.
    """
    with value_errors_as_user_errors():
        settings = PolicySettings.of(vars(arguments))
        return settings.build(source.directory, layout_of(arguments).processes)
