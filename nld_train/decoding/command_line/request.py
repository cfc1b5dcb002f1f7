"""From a command line to a request: prompts, a checkpoint, a commit policy."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.data.text_ids import text_ids
from nld_train.decoding.command_line.prompts import read_prompts
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
        texts: the prompts.
        prompts: ids of each.
        batch_size: maximum number of active sequences.
    """

    source: Source
    texts: list[str]
    prompts: list[list[int]]
    batch_size: int


def read_request(arguments: Namespace) -> Request:
    """Finds prompts and checkpoint of a command line; reads no weights.

    Raises:
        UserError: one of them does not exist, or the batch size is below 1.
    """
    texts = _read_prompts(arguments)
    check_batch_size(arguments)
    source = source_of(arguments)
    return Request(source, texts, [text_ids(source.tokenizer, text) for text in texts], arguments.batch_size)


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
    return find_source(Path(arguments.checkpoint), arguments.tokenizer, named, layout)


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


def _read_prompts(arguments: Namespace) -> list[str]:
    if arguments.prompts is None:
        if not arguments.prompt:
            raise UserError("--prompt: is empty")
        return [arguments.prompt]
    return read_prompts(Path(arguments.prompts))


def policy_of(arguments: Namespace, source: Source) -> PolicyOf:
    """The commit policy of a command line with the options of `commands.arguments.add_policy`.

    Raises:
        UserError: a value out of its range, an argument that the policy does not read, or a missing trained sampler.
    """
    with value_errors_as_user_errors():
        settings = PolicySettings.of(vars(arguments))
        return settings.build(source.directory, layout_of(arguments).processes)
