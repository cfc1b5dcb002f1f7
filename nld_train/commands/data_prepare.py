"""`nld-data prepare`: turns texts and conversations into token sets."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from nld_train.commands.command import Command, utf8
from nld_train.data.pictures.decode import PictureLimits
from nld_train.errors import UserError

if TYPE_CHECKING:
    from nld_train.data.pictures.settings import PictureSettings
    from nld_train.data.request import ChatRequest

_STDLIB_VALIDATION = 0.05


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="file, folder, address such as s3://bucket/*.jsonl, datasets name, or `stdlib`",
    )
    parser.add_argument("--output", "--out", dest="out", required=True, metavar="DIR", help="folder of the result")
    parser.add_argument("--name", help="name of the set (default: that of the first source)")
    parser.add_argument(
        "--tokenizer", default="bytes", help="Hugging Face directory, `bytes` (default), or `train-bpe:VOCAB`"
    )
    formats = ["auto", "text", "jsonl", "parquet", "folder", "dataset", "stdlib"]
    parser.add_argument("--format", choices=formats, default="auto", help="what the sources are (default: by name)")
    parser.add_argument("--text-key", type=utf8, default="text", help="key or column of the text (default: text)")
    parser.add_argument("--documents-per", choices=["file", "line", "paragraph"], default="file", help="in text files")
    parser.add_argument("--glob", default="**/*", help="files of a folder to read (default: all)")
    parser.add_argument("--split", default="train", help="split of a datasets source (default: train)")
    parser.add_argument("--dataset-config", help="configuration of a datasets source")
    parser.add_argument(
        "--encoding-errors", choices=["strict", "replace", "ignore"], default="strict", help="what to do with non-UTF-8"
    )
    parser.add_argument(
        "--validation",
        type=float,
        help="fraction of documents to hold out into NAME-validation, beside NAME-train "
        f"(default: 0, one set NAME; {_STDLIB_VALIDATION} for stdlib)",
    )
    parser.add_argument("--no-end-of-document", action="store_true", help="put no end token after documents")
    parser.add_argument(
        "--no-beginning-of-document",
        action="store_true",
        help="put no token before documents, also where the tokenizer's template puts one (BOS) before a text",
    )
    _add_chat(parser)
    _add_pictures(parser)
    parser.add_argument("--workers", type=int, default=_cores(), help="processes (default: one per core)")
    parser.add_argument("--shard-megabytes", type=float, default=8.0, help="input per unit of work (default: 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set of the same name, and OUT/tokenizer")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conversations")
    group.add_argument("--chat", action="store_true", help="the rows of the sources are conversations")
    formats = ["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "finevision"]
    group.add_argument("--chat-format", choices=formats, help="of the rows (default: auto, by their keys)")
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        type=utf8,
        help="template that renders them, or `default` for a simple one (default: the tokenizer's own)",
    )
    group.add_argument(
        "--chat-template-args",
        metavar="JSON",
        type=utf8,
        help="arguments of the template, such as '{\"enable_thinking\": false}'; a row may have its own",
    )
    group.add_argument(
        "--answers",
        choices=["all", "last", "each"],
        help="assistant turns that are learned: all (default), only the last one, or each one after the turns before "
        "it as the template renders these (for templates that leave out earlier reasoning)",
    )
    group.add_argument(
        "--leave-out-bad-rows",
        action="store_true",
        default=None,
        help="leave out and count rows that are no conversation or that the template refuses (default: stop at the "
        "first one)",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures in conversations")
    group.add_argument(
        "--pictures",
        action="store_true",
        help="messages may have pictures, or rows under `images` or `image`; the tokenizer is that of a "
        "vision-language model, or is made with [IMG], [IMG_BREAK] and [IMG_END]",
    )
    group.add_argument(
        "--picture-processor",
        metavar="DIR",
        type=utf8,
        help="directory or file of a processor_config.json, or JSON with patch_size, spatial_merge_size and size "
        "(default: the tokenizer's directory; with a tokenizer that is made here, Ministral3's: 14, 2 and "
        "longest_edge 1540)",
    )
    limits = PictureLimits()
    group.add_argument(
        "--picture-megabytes", type=float, metavar="N", help=f"most MiB of a file (default: {limits.megabytes:g})"
    )
    group.add_argument(
        "--picture-megapixels",
        type=float,
        metavar="N",
        help=f"most million pixels of a decoded picture (default: {limits.megapixels:g})",
    )
    group.add_argument(
        "--picture-seconds", type=float, metavar="S", help=f"most seconds of decoding (default: {limits.seconds:g})"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(options: argparse.Namespace) -> None:
    from nld_train.console import plain_console
    from nld_train.data.prepare import prepare
    from nld_train.data.request import PrepareRequest
    from nld_train.data.run_words import run_words
    from nld_train.data.sources import STDLIB, SourceSettings

    if options.shard_megabytes <= 0 or options.workers < 1:
        raise UserError("--shard-megabytes must be positive and --workers at least 1")
    chat = _chat_request(options)
    settings = SourceSettings(
        format=options.format,
        text_key=options.text_key,
        documents_per=options.documents_per,
        glob=options.glob,
        split=options.split,
        dataset_config=options.dataset_config,
        encoding_errors=options.encoding_errors,
        shard_bytes=max(1, int(options.shard_megabytes * 2**20)),
        chat=None if chat is None else options.chat_format or "auto",
        leave_out_bad_rows=bool(options.leave_out_bad_rows),
        pictures=_picture_settings(options),
    )
    held_out = options.validation
    if held_out is None:
        held_out = _STDLIB_VALIDATION if options.sources == [STDLIB] else 0.0
    request = PrepareRequest(
        sources=tuple(options.sources),
        out=options.out,
        name=options.name or _default_name(options.sources[0]),
        tokenizer=options.tokenizer,
        settings=settings,
        validation=held_out,
        append_end=chat is None and not options.no_end_of_document,
        prepend_beginning=chat is None and not options.no_beginning_of_document,
        workers=options.workers,
        overwrite=options.overwrite,
        chat=chat,
    )
    console = plain_console(soft_wrap=True)
    manifests = prepare(request, console)
    for name, manifest in manifests.items():
        console.print(f"{request.prefixes[name]}: {manifest.summary()}")
    console.print(f"use in a run: {shlex.join(['nld-train', *run_words(request, manifests)])}")


def _chat_request(options: argparse.Namespace) -> ChatRequest | None:
    """How conversations are rendered; None for texts.

    Raises:
        UserError: an option is given that does not go with --chat, or only with it.
    """
    from nld_train.data.chat.prompt import parse_arguments
    from nld_train.data.request import ChatRequest

    names = ("chat_format", "chat_template", "chat_template_args", "answers", "leave_out_bad_rows")
    if not options.chat:
        for name in names:
            if getattr(options, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for conversations: give --chat as well")
        return None
    for name in ("no_end_of_document", "no_beginning_of_document"):
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for texts: a chat template writes all special tokens itself"
            )
    return ChatRequest(options.chat_template, parse_arguments(options.chat_template_args), options.answers or "all")


def _picture_settings(options: argparse.Namespace) -> PictureSettings | None:
    """How pictures are read; None where conversations have none.

    Raises:
        UserError: an option is given that goes only with --pictures, or --pictures without --chat; or there is no
            processor.
    """
    from nld_train.data.pictures.processor import PictureProcessor, picture_processor
    from nld_train.data.pictures.settings import PictureSettings

    limits = {name: getattr(options, f"picture_{name}") for name in ("megabytes", "megapixels", "seconds")}
    given = {name: value for name, value in limits.items() if value is not None}
    if not options.pictures:
        named = [f"picture_{name}" for name in given] + ["picture_processor"] * (options.picture_processor is not None)
        for name in named:
            raise UserError(f"--{name.replace('_', '-')} is for pictures: give --pictures as well")
        return None
    if not options.chat:
        raise UserError("--pictures is for conversations: give --chat as well")
    made_here = options.tokenizer == "bytes" or options.tokenizer.startswith("train-bpe:")
    if options.picture_processor is not None:
        processor = picture_processor(options.picture_processor)
    else:
        processor = PictureProcessor(14) if made_here else picture_processor(options.tokenizer, "--pictures")
    return PictureSettings(processor, PictureLimits(**given, option="--picture-"))


def _default_name(source: str) -> str:
    name = os.path.basename(os.path.abspath(source)).split(".")[0]
    if not name or set(name) & set("*?["):
        raise UserError(f"--name: the set needs one, since {source} names several files")
    return name


PREPARE = Command(
    "prepare",
    "Turns text into Megatron's NAME.bin and NAME.idx, with NAME.manifest.json beside them. Run again after an "
    "interruption, it continues where it stopped.",
    _add_prepare,
    _prepare,
    summary="turn text into NAME.bin and NAME.idx",
    interrupted="interrupted: the same command continues where this one stopped",
)
