"""Pictures of prompts: from references in the parts of messages to image tokens and the input of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nld_train.config.schema import VisionConfig
from nld_train.data.chat.parts import PICTURE_TYPES, content_of
from nld_train.data.pictures.decode import PictureLimits, decode_picture
from nld_train.data.pictures.expand import IMAGE, ImageTokens, expand
from nld_train.data.pictures.processor import IMAGE_PROCESSOR, PROCESSOR, PictureProcessor, picture_processor
from nld_train.data.pictures.references import Picture, Reading, read_picture
from nld_train.data.records import Within
from nld_train.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from nld_train.model.vision.picture_prompt import PicturePrompt

# A part of a message that is a picture, as OpenAI has it.
Part = dict[str, Any]


@dataclass(frozen=True)
class PromptPictures:
    """How the pictures of prompts are read.

    Attributes:
        processor: of the model.
        tokens: of the model.
        limits: of each picture.
    """

    processor: PictureProcessor
    tokens: ImageTokens
    limits: PictureLimits = field(default_factory=PictureLimits)

    @classmethod
    def of(cls, vision: VisionConfig | None, directories: Sequence[Path]) -> PromptPictures | None:
        """That of a model: its processor, or one with the shape of its tower and Pixtral's other settings.

        Args:
            vision: of the model; None for one that reads text alone, which has none.
            directories: which may have a processor.

        Raises:
            UserError: the processor is not of this tower.
        """
        if vision is None:
            return None
        names = ("patch_size", "spatial_merge_size", "image_token_id", "image_break_token_id", "image_end_token_id")
        tokens = ImageTokens(**{name: getattr(vision, name) for name in names})
        for directory in directories:
            if any((directory / name).is_file() for name in (PROCESSOR, IMAGE_PROCESSOR)):
                found = picture_processor(str(directory), str(directory))
                for name in names[:2]:
                    if getattr(found, name) != getattr(vision, name):
                        raise UserError(
                            f"{directory}: the processor has {name} {getattr(found, name)}, and the model's tower "
                            f"{getattr(vision, name)}"
                        )
                return cls(found, tokens)
        return cls(PictureProcessor(vision.patch_size, vision.spatial_merge_size, vision.image_size), tokens)

    def read(self, reference: Any, folder: str, where: object) -> Picture:
        """A picture of a prompt; see `references.read_picture`.

        Args:
            reference: a path, a URL with data, or bytes.
            folder: from which relative paths start.
            where: names it in messages.

        Raises:
            UserError: it cannot be read, is no picture, or exceeds a limit.
        """
        return read_picture(reference, Reading(folder, self.limits, self.processor.resized), where)

    def prompt(self, ids: Sequence[int], references: Sequence[Any], folder: str, where: object) -> PicturePrompt:
        """Ids with an `[IMG]` for each picture as a prompt with all tokens of the pictures, and the pictures.

        Raises:
            UserError: what `read` refuses; more or fewer `[IMG]` than pictures.
        """
        names = [Within(where, f": picture {number}") for number in range(1, len(references) + 1)]
        read = [self.read(reference, folder, name).data for reference, name in zip(references, names, strict=True)]
        images = [decode_picture(data, self.limits, name) for data, name in zip(read, names, strict=True)]
        return self.prompt_of_images(ids, images, where)

    def prompt_of_images(self, ids: Sequence[int], images: Sequence[Image], where: object) -> PicturePrompt:
        """As `prompt`, of decoded pictures in RGB.

        Raises:
            UserError: a picture is too narrow; more or fewer `[IMG]` than pictures.
        """
        import torch

        from nld_train.model.vision.picture_prompt import PicturePrompt
        from nld_train.model.vision.pictures import Pictures

        sizes = (self.processor.resized(image.height, image.width, where) for image in images)
        expansion = expand(np.array(ids), [Picture(b"", *size) for size in sizes], self.tokens, where)
        inputs = [torch.from_numpy(self.processor.pixel_values(image)) for image in images]
        return PicturePrompt(expansion.ids.tolist(), Pictures.of(inputs))


def references_of(messages: Sequence[dict[str, Any]], where: object) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages as a chat template of a vision-language model reads them, and where their pictures are, in order.

    Raises:
        UserError: a part is neither text nor picture, or an answer has a picture.
    """
    found: list[dict[str, Any]] = []
    references: list[Any] = []
    for number, message in enumerate(messages, start=1):
        content = message.get("content")
        if isinstance(content, list) and any(map(_is_picture, content)):
            within = Within(where, f": message {number} ({message['role']})")
            if message["role"] == "assistant":
                raise UserError(f"{within}: holds a picture; the model writes text only")
            content, own = content_of(content, within)
            message = {**message, "content": content}
            references += own
        found.append(message)
    return found, references


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in PICTURE_TYPES


def with_pictures(text: str, pictures: Sequence[Any], where: object) -> str | list[Part]:
    """The content of a message: a text with pictures at its `[IMG]`, or before it where it has none of these.

    Args:
        text: of the message.
        pictures: paths or bytes.
        where: names the pictures in messages.

    Raises:
        UserError: more or fewer `[IMG]` than pictures.
    """
    if not pictures:
        return text
    pieces = marked(text, len(pictures), where).split(IMAGE)
    parts: list[Part] = [{"type": "text", "text": pieces[0]}]
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        parts += [{"type": "image", "image": picture}, {"type": "text", "text": piece}]
    return [part for part in parts if part.get("text") != ""]


def marked(text: str, count: int, where: object) -> str:
    """A text with `[IMG]` once for each of its pictures: as it is, or with all of them before it where it has none.

    Raises:
        UserError: it has more or fewer.
    """
    found = text.count(IMAGE)
    if found not in (0, count):
        raise UserError(f"{where}: {count} given, and the text has {found} placeholders ({IMAGE})")
    return text if found else IMAGE * count + text
