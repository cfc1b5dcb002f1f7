"""Checks of a command line that decodes, before torch is imported: a typing error is reported at once.

They find what the command line alone decides, and whether its files are there. What depends on their content is checked
where they are read.
"""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from nld_train.data.chat.prompt import parse_arguments, read_template
from nld_train.data.tokenizer import require_directory
from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.command_line.request import check_batch_size, layout_of, value_errors_as_user_errors
from nld_train.decoding.load import locate
from nld_train.decoding.mode_options import refuse_unread
from nld_train.decoding.policies.policy_declaration import option
from nld_train.decoding.policies.registry import PolicySettings
from nld_train.decoding.policies.threshold import THRESHOLD
from nld_train.errors import UserError
from nld_train.model.adapter_files import require_adapter
from nld_train.processes import world_size
from nld_train.results import check_result_files

_SAMPLING = ("top_k", "top_p", "seed")


def check_decode(arguments: Namespace) -> None:
    """Checks a command line of `nld-decode`.

    Raises:
        UserError: as `check_command_line`; or neither prompts nor a chat, or no mode, are given, or options that do not
            go together.
    """
    see = "(see nld-decode --help)"
    if not arguments.chat and arguments.prompt is None and arguments.prompts is None:
        raise UserError(f"one of the arguments --prompt --prompts --chat is required {see}")
    if arguments.mode is None and not arguments.compare and not talks(arguments):
        raise UserError(f"one of the arguments --mode --compare is required {see}")
    if arguments.system is not None and not arguments.chat:
        raise UserError("--system: only conversations have a system prompt; give --chat")
    if talks(arguments) and arguments.compare:
        raise UserError("--chat: talks in one mode at a time; --compare needs --prompt or --prompts")
    if talks(arguments) and (world_size() > 1 or layout_of(arguments).processes > 1):
        raise UserError("--chat: one process talks; with several, or --tensor and --pipeline, give --prompts as well")
    if arguments.image and arguments.prompts is not None:
        raise UserError(
            "--image: belongs to one --prompt or to a chat; in --prompts the pictures are in the conversations"
        )
    check_command_line(arguments)


def talks(arguments: Namespace) -> bool:
    """Whether a command line talks with the model: a chat without prompts."""
    return bool(getattr(arguments, "chat", False)) and arguments.prompt is None and arguments.prompts is None


def check_command_line(arguments: Namespace) -> None:
    """Checks files and values of the options in `commands.arguments`, of which a command has some.

    Raises:
        UserError: a file or folder that does not exist or cannot be used, or a value out of its range.
    """
    check_batch_size(arguments)
    layout_of(arguments)
    with value_errors_as_user_errors():
        for value in (*getattr(arguments, "thresholds", ()), getattr(arguments, "threshold", None)):
            if value is not None:
                THRESHOLD.check(value)
        if hasattr(arguments, "policy"):
            PolicySettings.of(vars(arguments))
        for length in getattr(arguments, "block_lengths", None) or (getattr(arguments, "block_length", None),):
            _options(arguments, length)
        if (modes := _modes(arguments)) is not None:
            refuse_unread(vars(arguments), modes)
    _refuse_unread_sampling(arguments)
    check_files(arguments)


def _modes(arguments: Namespace) -> Sequence[str] | None:
    """The decode modes of a command line; None for a command without a choice. A comparison and a chat have all."""
    if hasattr(arguments, "modes"):
        return list(arguments.modes)
    if not hasattr(arguments, "mode"):
        return None
    return get_args(Mode) if arguments.mode is None or talks(arguments) else [arguments.mode]


def _refuse_unread_sampling(arguments: Namespace) -> None:
    for name in _SAMPLING:
        if getattr(arguments, "temperature", None) == 0 and getattr(arguments, name) is not None:
            raise UserError(f"{option(name)}: without a temperature nothing is sampled; give --temperature")
    if "" in getattr(arguments, "stop", ()):
        raise UserError("--stop: an empty text would stop every text at once")


def check_files(arguments: Namespace) -> None:
    """Checks the files alone.

    Raises:
        UserError: one of them does not exist or cannot be used.
    """
    check_result_files(arguments)
    if (prompts := getattr(arguments, "prompts", None)) is not None:
        _require_readable("--prompts", prompts)
    for image in getattr(arguments, "image", ()):
        _require_readable("--image", image)
    locate(Path(arguments.checkpoint))
    if (template := getattr(arguments, "chat_template", None)) is not None:
        read_template(Path(template))
    parse_arguments(getattr(arguments, "chat_template_args", None))
    if arguments.tokenizer is not None:
        require_directory(arguments.tokenizer)
    if isinstance(adapter := getattr(arguments, "adapter", None), str):
        require_adapter(Path(adapter))


def _options(arguments: Namespace, block_length: int | None) -> DecodeOptions:
    """The options of the decoder that a command line gives, all but those that need the tokenizer."""
    names = {field.name for field in fields(DecodeOptions)} - {"adapter", "block_length"}
    given: dict[str, Any] = {
        name: value for name, value in vars(arguments).items() if name in names and value is not None
    }
    if (seed := getattr(arguments, "seed", None)) is not None:
        given["seeds"] = seed
    if block_length is not None:
        given["block_length"] = block_length
    return DecodeOptions(**{"max_new_tokens": 1, **given})


def _require_readable(option: str, path: str) -> None:
    reason = None
    if not os.path.exists(path):
        reason = errno.ENOENT
    elif os.path.isdir(path):
        reason = errno.EISDIR
    elif not os.access(path, os.R_OK):
        reason = errno.EACCES
    if reason is not None:
        raise UserError(f"{option} {path}: cannot be read ({os.strerror(reason)})")
