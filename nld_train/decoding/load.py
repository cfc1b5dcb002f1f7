"""From a path to an engine: the kind of a checkpoint, its tokenizer, and its weights on the ranks of a layout.

The description comes first and is cheap, so that an invalid request is refused before any weight is read. torch is
imported where weights are, so that a path that does not exist is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.config.schema import ModelConfig
from nld_train.data.chat.end_of_turn import end_of_turn_tokens
from nld_train.data.chat.prompt import read_template
from nld_train.data.tokenizer import load_tokenizer
from nld_train.data.tokenizer_files import TOKENIZER_FILES
from nld_train.data.vocabulary import refuse_other_tokenizer, training_hashes
from nld_train.decoding.clean_stream import PAPER, CleanStream
from nld_train.decoding.layout import ONE_PROCESS, Layout
from nld_train.errors import UserError
from nld_train.model.vision.picture_prompt import ImageTokens
from nld_train.registry import resolve
from nld_train.training.checkpoint.paths import find_checkpoint, is_hugging_face

if TYPE_CHECKING:
    from nld_train.data.pictures.prompt import PromptPictures
    from nld_train.decoding.engines.engine import Engine

# Who reads both kinds, imported where there is one: conversion imports decoding, not the reverse.
_FIND_EXPORT = "checkpoint_convert.decoding_sources:find_export"
_FIND_MEGATRON = "checkpoint_convert.decoding_sources:find_megatron"


@dataclass
class Description:
    """Properties of a model before its weights are read: `engine.Limits`."""

    vocabulary_size: int
    mask_token_id: int
    context_length: int
    has_adapter: bool
    clean_stream: CleanStream = PAPER
    image_tokens: ImageTokens | None = None

    @classmethod
    def of(cls, model: ModelConfig, adapter: Path | None, clean_stream: CleanStream) -> Description:
        """Those of a model with the drafter adapter in a directory, or without one."""
        return cls(
            vocabulary_size=model.vocab_size,
            mask_token_id=model.mask_token_id,
            context_length=model.max_position_embeddings,
            has_adapter=adapter is not None,
            clean_stream=clean_stream,
            image_tokens=ImageTokens.of(model.vision),
        )


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found and described.

    Attributes:
        directory: of the checkpoint or export.
        description: properties against which a request is checked.
        tokenizer: of `transformers`.
        stop_tokens: ids that end a text; those that end a turn of the chat template are the last of them.
        block_length: tokens per block in its training.
        open: reads the weights; a context that yields the engine.
        pictures: how pictures of prompts are read; None for a model that reads text alone.
    """

    directory: Path
    description: Description
    tokenizer: Any
    stop_tokens: tuple[int, ...]
    block_length: int
    open: Callable[[], AbstractContextManager[Engine]]
    pictures: PromptPictures | None = None


def find_source(
    path: Path,
    tokenizer: str | None = None,
    adapter: Path | None = None,
    layout: Layout = ONE_PROCESS,
    chat_template: Path | None = None,
) -> Source:
    """Finds and describes the checkpoint or export of a path.

    Args:
        path: a run directory (its newest checkpoint is used), a checkpoint, an imported checkpoint, or an export.
        tokenizer: directory of a tokenizer that is used instead of the checkpoint's.
        adapter: directory of a drafter adapter that is used instead of the checkpoint's.
        layout: of the processes that share the model of a Megatron checkpoint.
        chat_template: file of a chat template that is used instead of the tokenizer's.

    Raises:
        UserError: the path is none of these, the checkpoint is damaged or has no tokenizer, or an adapter or the layout
            does not fit it.
    """
    directory = locate(path)
    if is_hugging_face(directory):
        if layout.processes > 1:
            raise UserError(
                f"--tensor, --pipeline: one process reads an export, and {path} is an export; nld-convert import "
                "converts it to a checkpoint that several processes can share"
            )
        return _for_chat(resolve(_FIND_EXPORT)(directory, tokenizer, adapter), chat_template)
    return _for_chat(resolve(_FIND_MEGATRON)(directory, tokenizer, adapter, layout), chat_template)


def _for_chat(source: Source, chat_template: Path | None) -> Source:
    """The source with another chat template, where one is named; texts also end with the end of a turn."""
    if chat_template is not None:
        source.tokenizer.chat_template = read_template(chat_template)
    stops = dict.fromkeys([*source.stop_tokens, *end_of_turn_tokens(source.tokenizer)])
    return replace(source, stop_tokens=tuple(stops))


def locate(path: Path) -> Path:
    """The directory of the checkpoint or export that a path refers to; reads none of its files.

    Raises:
        UserError: there is none.
    """
    if is_hugging_face(path):
        return path
    directory = find_checkpoint(path)
    if directory is None:
        what = "holds no checkpoint" if path.is_dir() else "is no directory" if path.exists() else "does not exist"
        raise UserError(f"{path}: {what}; name a run, a checkpoint or an export")
    return directory


def find_tokenizer(
    directory: Path, given: str | None, candidates: Sequence[Path], data: Sequence[str], model: ModelConfig
) -> Any:
    """The given tokenizer, if it is the checkpoint's, else that of the first candidate with one.

    Args:
        directory: of the checkpoint.
        given: directory of the tokenizer that the command line names.
        candidates: directories that may contain the checkpoint's tokenizer.
        data: prefixes of the sets that the checkpoint was trained on.
        model: of the checkpoint.

    Raises:
        UserError: there is none, or the given one is another.
    """
    if given is not None:
        refuse_other_tokenizer(given, "--tokenizer", candidates, training_hashes(data), model)
        return load_tokenizer(given)
    for candidate in candidates:
        if any((candidate / name).is_file() for name in TOKENIZER_FILES):
            return load_tokenizer(str(candidate))
    searched = ", ".join(map(str, dict.fromkeys(candidates)))
    raise UserError(f"{directory}: no tokenizer was found (looked in {searched}); name one with --tokenizer")
