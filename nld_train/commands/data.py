"""`nld-data`: prepares token sets, shows their content, takes prompts out of them, and writes questions to learn."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING

from nld_train.commands.command import Command, utf8
from nld_train.data.pictures.decode import PictureLimits
from nld_train.errors import UserError
from nld_train.printable import say
from nld_train.results import check_result_files

if TYPE_CHECKING:
    from nld_train.data.pictures.settings import PictureSettings
    from nld_train.data.request import ChatRequest

_STDLIB_VALIDATION = 0.05
_TEXT_DOCUMENTS = 20_000


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


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", help="path of the set without .bin and .idx")
    parser.add_argument("--sample", type=int, metavar="N", help="show sample N, in file order")
    parser.add_argument(
        "--sequence-length", type=int, default=512, metavar="L", help="tokens of a sample (default: 512)"
    )
    parser.add_argument("--conversation", type=int, metavar="N", help="show conversation N, in file order")
    parser.add_argument(
        "--block-size", type=int, metavar="B", help="tokens per block (default: 64, and 32 in conversations)"
    )
    parser.add_argument(
        "--blocks",
        choices=["answer", "document"],
        default="answer",
        help="where the blocks of conversations are counted from (default: answer)",
    )
    parser.add_argument("--level", type=float, metavar="T", help="noise level in [0, 1] (default: drawn)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the noise (default: 0)")
    parser.add_argument("--tokenizer", metavar="DIR", help="to show text (default: the one that the manifest names)")
    parser.add_argument(
        "--save-pictures", metavar="FOLDER", type=utf8, help="save the pictures of the conversation as they came"
    )


def _inspect(options: argparse.Namespace) -> None:
    from nld_train.data.inspect_set import InspectRequest, inspect_set

    inspect_set(
        InspectRequest(
            prefix=options.prefix,
            sample=options.sample,
            sequence_length=options.sequence_length,
            block_size=options.block_size,
            level=options.level,
            seed=options.seed,
            tokenizer=options.tokenizer,
            conversation=options.conversation,
            blocks=options.blocks,
            pictures_folder=options.save_pictures,
        )
    )


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", help="path of the set without .bin and .idx")
    parser.add_argument("--output", "--out", required=True, metavar="FILE", help="JSONL file to write")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="prompts, of N documents (default: 16)")
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="length of each prompt (default: 128); of conversations, which stay whole, the most (default: any)",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="to make text (default: the one that the manifest names)")


def _prompts(options: argparse.Namespace) -> None:
    from nld_train.data.held_out_prompts import PromptRequest, write_prompts

    request = PromptRequest(options.prefix, options.output, options.count, options.tokens, options.tokenizer)
    say(f"{options.output}: {write_prompts(request)} prompts")


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="where to write; made if there is none")
    parser.add_argument(
        "--conversations", type=int, default=60_000, metavar="N", help="for training, over all kinds (default: 60000)"
    )
    parser.add_argument("--held-out", type=int, default=100, metavar="N", help="held out, of each kind (default: 100)")
    parser.add_argument(
        "--documents", type=int, metavar="N", help=f"of text for the stages before (default: {_TEXT_DOCUMENTS})"
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="questions about drawn pictures, for a vision-language model; held-out-blank.jsonl has the held-out ones "
        "with blank pictures, and there is no text and no task of lm-evaluation-harness",
    )
    parser.add_argument("--kinds", nargs="+", type=utf8, metavar="KIND", help="kinds of questions (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random questions (default: 0)")


def _tasks(options: argparse.Namespace) -> None:
    from nld_train.data.tasks.registry import KINDS
    from nld_train.data.tasks.write import TasksRequest, write_tasks

    if options.pictures:
        _picture_tasks(options)
        return
    kinds = tuple(options.kinds or KINDS)
    documents = _TEXT_DOCUMENTS if options.documents is None else options.documents
    write_tasks(TasksRequest(options.folder, options.conversations, options.held_out, kinds, options.seed, documents))
    say(
        f"{options.folder}: {options.conversations} conversations for training, {options.held_out} held out of each of "
        f"{len(kinds)} kinds ({', '.join(kinds)}), {documents} documents of text, and tasks of "
        "lm-evaluation-harness"
    )


def _picture_tasks(options: argparse.Namespace) -> None:
    from nld_train.data.tasks.picture_kinds import PICTURE_KINDS
    from nld_train.data.tasks.write_pictures import PictureTasksRequest, write_picture_tasks

    if options.documents is not None:
        raise UserError("--documents is of text: leave it out with --pictures")
    kinds = tuple(options.kinds or PICTURE_KINDS)
    write_picture_tasks(
        PictureTasksRequest(options.folder, options.conversations, options.held_out, kinds, options.seed)
    )
    say(
        f"{options.folder}: {options.conversations} conversations about pictures for training, {options.held_out} held "
        f"out of each of {len(kinds)} kinds ({', '.join(kinds)}), and these again with blank pictures"
    )


main = Command(
    "nld-data",
    "Prepares token sets, and shows their content.",
    subcommands=(
        Command(
            "prepare",
            "Turns text into Megatron's NAME.bin and NAME.idx, with NAME.manifest.json beside them. Run again after an "
            "interruption, it continues where it stopped.",
            _add_prepare,
            _prepare,
            summary="turn text into NAME.bin and NAME.idx",
            interrupted="interrupted: the same command continues where this one stopped",
        ),
        Command(
            "inspect",
            "Shows the content of a set; with --sample, one training sample with its document borders and masks; with "
            "--conversation, a conversation with its prompts and answers, blocks and masks.",
            _add_inspect,
            _inspect,
            summary="show a set, or one training sample of it",
        ),
        Command(
            "prompts",
            "Takes prompts out of a held-out set, conversations up to their last answers, as JSONL for nld-decode "
            "--prompts.",
            _add_prompts,
            _prompts,
            check_result_files,
            summary="take prompts for decoding out of a set",
        ),
        Command(
            "tasks",
            "Writes conversations in which each question has exactly one right answer: train.jsonl and held-out.jsonl, "
            "which share no question; text for the stages before, text.jsonl; and tasks of lm-evaluation-harness that "
            "score the held-out ones.",
            _add_tasks,
            _tasks,
            summary="write questions with exactly one right answer",
        ),
    ),
)

if __name__ == "__main__":
    sys.exit(main())
