"""Writes conversations about drawn pictures: `nld-data tasks --pictures`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from nld_train.data.tasks.kind import Turn, drawn_kinds
from nld_train.data.tasks.picture_kinds import PICTURE_KINDS, PictureKind
from nld_train.data.tasks.scenes import Scene, data_url, draw, random_scene
from nld_train.data.tasks.write import HELD_OUT, TRAIN, is_one_in, made_folder, refuse_unknown_kinds, write_rows
from nld_train.errors import UserError

BLANK = "held-out-blank.jsonl"
_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class PictureTasksRequest:
    """What is written.

    Attributes:
        folder: is made if there is none.
        conversations: for training, over all kinds.
        held_out: conversations of each kind.
        kinds: names of kinds.
        seed: of the random scenes, questions and drawings.
    """

    folder: str
    conversations: int
    held_out: int
    kinds: tuple[str, ...]
    seed: int = 0


def write_picture_tasks(request: PictureTasksRequest) -> None:
    """Writes `train.jsonl`, `held-out.jsonl`, and `held-out-blank.jsonl`, the same questions about blank pictures.

    The same request writes the same bytes. No scene is in both files: which file it belongs to follows from it alone,
    not from the question, the seed or how it is drawn.

    Raises:
        UserError: no kind or an unknown one, a number below 1, or a folder that cannot be made.
    """
    if min(request.conversations, request.held_out) < 1:
        raise UserError("--conversations and --held-out must be at least 1")
    refuse_unknown_kinds(request.kinds, PICTURE_KINDS, "with --pictures")
    folder = made_folder(request.folder)
    kinds = [PICTURE_KINDS[name] for name in request.kinds]
    held_out, blank = [], []
    for kind in kinds:
        random = Random(f"{request.seed} pictures held out {kind.name}")
        for found in islice(_asked([kind], random, held_out=True), request.held_out):
            held_out.append(_row(*found, random))
            name, difficulty, scene, turn = found
            blank.append(_row(name, difficulty, scene.blank(), turn, random))
    write_rows(folder / HELD_OUT, held_out)
    write_rows(folder / BLANK, blank)
    random = Random(f"{request.seed} pictures train")
    found_train = islice(_asked(kinds, random, held_out=False), request.conversations)
    write_rows(folder / TRAIN, (_row(*found, random) for found in found_train))


def is_held_out_scene(scene: Scene) -> bool:
    """Whether conversations about a scene are held out: a function of the scene alone."""
    return is_one_in(_HELD_OUT_ONE_IN, scene.key)


def _asked(kinds: list[PictureKind], random: Random, held_out: bool) -> Iterator[tuple[str, int, Scene, Turn]]:
    """Kind, difficulty, scene and question; each of the last two at random."""
    for kind, difficulty in drawn_kinds(kinds, random):
        scene = random_scene(random, difficulty)
        if is_held_out_scene(scene) == held_out and (turn := kind.ask(scene, random)) is not None:
            yield kind.name, difficulty, scene, turn


def _row(kind: str, difficulty: int, scene: Scene, turn: Turn, random: Random) -> dict[str, Any]:
    content = [
        {"type": "image_url", "image_url": {"url": data_url(draw(scene, random))}},
        {"type": "text", "text": turn.question},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
    return {"messages": messages, "kind": kind, "difficulty": difficulty}
