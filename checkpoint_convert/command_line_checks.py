"""Checks of a command line of `nld-convert`, before torch is imported.

Its files must be there, and new ones must not. What depends on the content of the files is checked where they are read.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from checkpoint_convert import push
from checkpoint_convert.card_metadata import check_language, check_license
from checkpoint_convert.checkpoint_paths import require_megatron, require_not_exported
from checkpoint_convert.source_config import read_source_config
from checkpoint_convert.staging import require_new
from nld_train.data.tokenizer_files import TOKENIZER_FILES
from nld_train.errors import UserError
from nld_train.model.adapter_files import require_adapter
from nld_train.training.checkpoint.paths import is_hugging_face


def check_import(options: Namespace) -> None:
    """Checks SRC, its configuration and DST.

    Raises:
        UserError: SRC is no model directory, or DST exists.
    """
    if not options.source.is_dir():
        raise UserError(f"{options.source}: is not a directory; name a Hugging Face model directory")
    read_source_config(options.source)
    require_new(options.destination)


def check_export(options: Namespace) -> None:
    """Checks SRC, DST, the directories of tokenizer and adapter, license and languages.

    Raises:
        UserError: one of them does not exist, or DST does; or the license is no identifier, or a language no code.
    """
    require_not_exported(options.source)
    require_megatron(options.source)
    require_new(options.destination)
    tokenizer: Path | None = options.tokenizer
    if tokenizer is not None and not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"--tokenizer {tokenizer}: has no tokenizer files")
    if options.adapter is not None:
        require_adapter(options.adapter)
    if options.license is not None:
        check_license(options.license)
    for code in options.language:
        check_language(code)


def check_verify(options: Namespace) -> None:
    """Checks both checkpoints and the file of tokens.

    Raises:
        UserError: one of them does not exist.
    """
    for path in (options.first, options.second):
        if not is_hugging_face(path):
            require_megatron(path)
    if options.tokens != "random" and not Path(options.tokens).is_file():
        raise UserError(f"--tokens {options.tokens}: is no file")


def check_push(options: Namespace) -> None:
    """Checks DIR and REPO, and that somebody is logged in.

    Raises:
        UserError: what `push.check` refuses.
    """
    push.check(options.source, options.repository)
