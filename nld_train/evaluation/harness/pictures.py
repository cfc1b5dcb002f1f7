"""Tasks with pictures: lm_eval passes them beside the text, in which `<image>` says where each stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nld_train.data.pictures.expand import IMAGE
from nld_train.data.pictures.prompt import Part
from nld_train.decoding.load import Source
from nld_train.errors import UserError
from nld_train.evaluation.harness.generation_arguments import tasks_within

# What the texts of tasks have for a picture, as in lm_eval's own models.
_PLACE = "<image>"


def check_picture_tasks(tasks: Sequence[Any], source: Source) -> None:
    """Refuses tasks with pictures that cannot be evaluated.

    Args:
        tasks: tasks and groups of lm_eval.
        source: the checkpoint.

    Raises:
        UserError: the model reads text alone, or a task scores choices or hears sound.
    """
    for task in tasks_within(tasks):
        if not getattr(task, "MULTIMODAL", False):
            continue
        if source.pictures is None:
            raise UserError(f"--tasks: {task.task_name} shows pictures, and {source.directory} reads text alone")
        if getattr(task.config, "doc_to_audio", None):
            raise UserError(f"--tasks: {task.task_name} plays sound, which no model here hears")
        if task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"--tasks: {task.task_name} shows pictures and is a task of type {task.OUTPUT_TYPE}; with pictures, "
                "texts are generated (generate_until)"
            )


def visuals_of(request: Any) -> Sequence[Any]:
    """The pictures of a request of lm_eval, images of PIL; none of a text."""
    beside = request.args[2] if len(request.args) > 2 else {}
    return beside.get("visual") or ()


def content_at_marks(text: str) -> str | list[Part]:
    """The text of a message as a chat template reads it: with a part for each picture."""
    pieces = text.split(_PLACE)
    if len(pieces) == 1:
        return text
    parts: list[Part] = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    return [part for part in parts if part.get("text") != ""]


def picture_prompt(
    source: Source, encode: Callable[[str], list[int]], context: str, visuals: Sequence[Any]
) -> Sequence[int]:
    """The prompt of a request with pictures.

    Args:
        source: a vision-language model.
        encode: from a text to ids.
        context: the text, with a placeholder for each picture.
        visuals: images of PIL.

    Raises:
        UserError: the model reads text alone; more or fewer placeholders than pictures; a picture is no image.
    """
    if source.pictures is None:
        raise UserError(f"--tasks: a request shows pictures, and {source.directory} reads text alone")
    if wrong := next((each for each in visuals if not hasattr(each, "convert")), None):
        raise UserError(f"--tasks: a picture of a request is of type {type(wrong).__name__}, not an image of PIL")
    text = context.replace(_PLACE, IMAGE)
    if text.count(IMAGE) != len(visuals):
        raise UserError(
            f"--tasks: a prompt has {text.count(IMAGE)} placeholders, and there are {len(visuals)} pictures"
        )
    images = [each.convert("RGB") for each in visuals]
    return source.pictures.prompt_of_images(encode(text), images, "--tasks: a prompt")
