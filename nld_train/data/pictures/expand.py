"""Image tokens: the one that a template writes for a picture becomes as many as the picture's size makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nld_train.config.image_tokens import image_tokens
from nld_train.data.pictures.references import Picture
from nld_train.errors import UserError

if TYPE_CHECKING:
    from nld_train.data.pictures.settings import PictureSettings
    from nld_train.data.tokenizer import EncoderSpec

# As transformers' PixtralProcessor names them.
IMAGE, BREAK, END = IMAGE_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


@dataclass(frozen=True)
class ImageTokens:
    """What decides the image tokens of a set, under the names of `model.vision`.

    Attributes:
        patch_size: pixels of a patch, in each direction.
        spatial_merge_size: patches that become one image token, in each direction.
        image_token_id: of `[IMG]`, whose embedding the tower gives.
        image_break_token_id: of `[IMG_BREAK]`.
        image_end_token_id: of `[IMG_END]`.
    """

    patch_size: int
    spatial_merge_size: int
    image_token_id: int
    image_break_token_id: int
    image_end_token_id: int


@dataclass(frozen=True)
class Expansion:
    """How the tokens of a rendering are expanded.

    Attributes:
        source: int64 `[tokens after]`, the token before that each is made of.
        ids: int64 `[tokens after]`.
        starts: int64 `[pictures]`, the first token of each picture, after.
    """

    source: NDArray[np.int64]
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]


def image_tokens_of(encoder: EncoderSpec, settings: PictureSettings | None, tokenizer: str) -> ImageTokens | None:
    """The image tokens of a tokenizer; None without settings.

    Args:
        encoder: of the tokenizer.
        settings: of the pictures.
        tokenizer: names it in messages.

    Raises:
        UserError: the tokenizer has not all of them as special tokens.
    """
    if settings is None:
        return None
    definition = Tokenizer.from_str(encoder.definition)
    ids = [-1 if (index := definition.token_to_id(name)) is None else index for name in IMAGE_TOKENS]
    if missing := [name for name, index in zip(IMAGE_TOKENS, ids, strict=True) if index not in encoder.forbidden]:
        raise UserError(
            f"--pictures: the tokenizer in {tokenizer} has no special token {', '.join(missing)}: give that of a "
            "vision-language model"
        )
    return ImageTokens(settings.processor.patch_size, settings.processor.spatial_merge_size, *ids)


def expand(ids: NDArray[Any], pictures: Sequence[Picture], tokens: ImageTokens, where: object) -> Expansion:
    """Puts the layout of each picture where its image token stands.

    Args:
        ids: of a rendering, `[tokens]`, with an image token for each picture.
        pictures: in the order of their tokens.
        tokens: ids and size.
        where: file and row, for messages.

    Raises:
        UserError: there are more or fewer image tokens than pictures.
    """
    found = np.flatnonzero(ids == tokens.image_token_id)
    if len(found) != len(pictures):
        raise UserError(
            f"{where}: the chat template writes {IMAGE} {len(found)} times for {len(pictures)} pictures: give the "
            "--chat-template of a vision-language model"
        )
    layouts = [image_tokens(tokens, (picture.height, picture.width)) for picture in pictures]
    lengths = np.ones(len(ids), np.int64)
    lengths[found] = [len(layout) for layout in layouts]
    source = np.repeat(np.arange(len(ids)), lengths)
    starts = (np.cumsum(lengths) - lengths)[found]
    expanded = ids[source].astype(np.int64)
    for start, layout in zip(starts.tolist(), layouts, strict=True):
        expanded[start : start + len(layout)] = layout
    return Expansion(source, expanded, starts)
