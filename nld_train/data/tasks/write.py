"""Writes conversations of all kinds to a folder, for training and held out, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice, repeat
from pathlib import Path
from random import Random
from typing import Any

from nld_train.data.tasks.harness import write_harness_tasks
from nld_train.data.tasks.kind import DIFFICULTIES, Kind, Turn, drawn_kinds
from nld_train.data.tasks.registry import KINDS
from nld_train.data.tasks.text import random_document
from nld_train.errors import UserError
from nld_train.files import write_atomically

TRAIN, HELD_OUT, TEXT = "train.jsonl", "held-out.jsonl", "text.jsonl"
# One in so many questions is held out, whatever the seed.
_HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class TasksRequest:
    """What to write.

    Attributes:
        folder: is made if there is none.
        conversations: for training, over all kinds.
        held_out: conversations of each kind, no question twice.
        kinds: names of kinds, for training each as often as its weight says.
        seed: of the random questions.
        documents: of text for the stages before conversations.
    """

    folder: str
    conversations: int
    held_out: int
    kinds: tuple[str, ...]
    seed: int = 0
    documents: int = 20_000


def write_tasks(request: TasksRequest) -> None:
    """Writes the files of a request; the same request writes the same bytes.

    No first question of a conversation is in both files: which file it belongs to follows from the question alone.

    Raises:
        UserError: no kind or an unknown one, a number below 1, or a folder that cannot be made.
    """
    _check(request)
    kinds = [KINDS[name] for name in request.kinds]
    held_out = [row for kind in kinds for row in _held_out_rows(kind, request.held_out, request.seed)]
    folder = made_folder(request.folder)
    write_rows(folder / HELD_OUT, held_out)
    write_rows(folder / TRAIN, islice(_train_rows(kinds, request.seed), request.conversations))
    random = Random(f"{request.seed} text")
    write_rows(folder / TEXT, ({"text": random_document(random)} for _ in range(request.documents)))
    write_harness_tasks(folder, request.kinds)


def made_folder(path: str) -> Path:
    """The folder of a path.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
    return folder


def _check(request: TasksRequest) -> None:
    if min(request.conversations, request.held_out, request.documents) < 1:
        raise UserError("--conversations, --held-out and --documents must be at least 1")
    refuse_unknown_kinds(request.kinds, KINDS, "kinds")


def refuse_unknown_kinds(names: Sequence[str], kinds: Iterable[str], what: str) -> None:
    """Refuses names of no kind, and no names.

    Args:
        names: from the command line.
        kinds: all that there are.
        what: they are, for the message.

    Raises:
        UserError: naming them and the kinds.
    """
    known = list(kinds)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(
            f"--kinds: {', '.join(unknown) or 'nothing'} is no kind of question; {what}: {', '.join(known)}"
        )


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a file. One that is so already keeps its time of change, by which `nld-data prepare` knows its input."""
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, content)


def _train_rows(kinds: Sequence[Kind], seed: int) -> Iterator[dict[str, Any]]:
    random = Random(f"{seed} train")
    for kind, difficulty in drawn_kinds(kinds, random):
        turns = kind.draw(random, difficulty)
        if not is_held_out(turns):
            yield _row(kind, difficulty, turns)


def _held_out_rows(kind: Kind, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations of a kind, its difficulties in turn."""
    random = Random(f"{seed} held out {kind.name}")
    seen: set[tuple[Turn, ...]] = set()
    for difficulty in islice(chain.from_iterable(repeat(DIFFICULTIES)), count):
        turns = _new(kind, random, difficulty, seen)
        seen.add(tuple(turns))
        yield _row(kind, difficulty, turns)


def _new(kind: Kind, random: Random, difficulty: int, seen: set[tuple[Turn, ...]]) -> list[Turn]:
    """A held-out conversation that is not in `seen`."""
    for _ in range(1000 * _HELD_OUT_ONE_IN):
        turns = kind.draw(random, difficulty)
        if is_held_out(turns) and tuple(turns) not in seen:
            return turns
    raise UserError(f"--held-out: there are only about {len(seen)} different held-out questions of kind {kind.name}")


def is_held_out(turns: Sequence[Turn]) -> bool:
    """Whether a conversation is held out: a function of its first question, not of seed, kind or difficulty."""
    return is_one_in(_HELD_OUT_ONE_IN, turns[0].question)


def is_one_in(count: int, text: str) -> bool:
    """Whether a text is among one in so many, by its hash."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") % count == 0


def _row(kind: Kind, difficulty: int, turns: Sequence[Turn]) -> dict[str, Any]:
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.question), ("assistant", turn.answer))
    ]
    return {"messages": messages, "kind": kind.name, "difficulty": difficulty}
