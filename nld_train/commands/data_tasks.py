"""`nld-data tasks`: writes questions with exactly one right answer, about texts or drawn pictures."""

from __future__ import annotations

import argparse

from nld_train.commands.command import Command, utf8
from nld_train.errors import UserError
from nld_train.printable import say

_TEXT_DOCUMENTS = 20_000


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


TASKS = Command(
    "tasks",
    "Writes conversations in which each question has exactly one right answer: train.jsonl and held-out.jsonl, "
    "which share no question; text for the stages before, text.jsonl; and tasks of lm-evaluation-harness that "
    "score the held-out ones.",
    _add_tasks,
    _tasks,
    summary="write questions with exactly one right answer",
)
