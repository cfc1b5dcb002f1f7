"""How many tokens a picture takes in a text, and which, as the Pixtral processor of transformers writes them.

A row of merged patches is that many `[IMG]` and an `[IMG_BREAK]`; the last row ends in `[IMG_END]` instead. Only
`[IMG]` tokens carry features of the picture: the other two have embeddings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nld_train.config.schema import VisionConfig


class ImageTokenConfig(Protocol):
    """What decides the tokens of a picture of a given size: keys of `VisionConfig`."""

    @property
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""

    @property
    def spatial_merge_size(self) -> int:
        """Edge of the square of patches that become one `[IMG]` token."""

    @property
    def image_token_id(self) -> int:
        """The token `[IMG]`."""

    @property
    def image_break_token_id(self) -> int:
        """The token `[IMG_BREAK]`."""

    @property
    def image_end_token_id(self) -> int:
        """The token `[IMG_END]`."""


# Patches that pass through a tower together. Its mask over them is dense, though each picture sees itself alone.
PATCHES_TOGETHER = 4096


def merged_grid(vision: ImageTokenConfig, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of `[IMG]` tokens of a picture.

    Args:
        vision: the tower's shape, `model.vision`, or what a prepared set has of it.
        size: height and width in pixels, multiples of `patch_size x spatial_merge_size`, as the processor resizes to.
    """
    step = vision.patch_size * vision.spatial_merge_size
    height, width = (int(each) for each in size)
    assert height % step == width % step == 0, "pictures are resized to whole merged patches"
    return height // step, width // step


def image_token_count(vision: ImageTokenConfig, size: Sequence[int]) -> int:
    """Number of `[IMG]` tokens of a picture, so of its features; arguments as of `merged_grid`."""
    rows, columns = merged_grid(vision, size)
    return rows * columns


def image_tokens(vision: ImageTokenConfig, size: Sequence[int]) -> list[int]:
    """All tokens of a picture: rows x (columns + 1) ids; arguments as of `merged_grid`."""
    rows, columns = merged_grid(vision, size)
    row = [vision.image_token_id] * columns + [vision.image_break_token_id]
    return [*(row * rows)[:-1], vision.image_end_token_id]


def patch_count(vision: ImageTokenConfig, size: Sequence[int]) -> int:
    """Patches of a picture, the positions that it takes in the tower; arguments as of `merged_grid`."""
    return image_token_count(vision, size) * vision.spatial_merge_size**2


def resized(vision: VisionConfig, size: Sequence[int], longest_edge: int | None = None) -> tuple[int, int]:
    """Height and width in pixels to which the processor resizes a picture of another size.

    A picture whose longer edge exceeds the limit is scaled down to it; then both edges are rounded up to whole merged
    patches.

    Args:
        vision: the tower's shape.
        size: height and width of the picture as it is.
        longest_edge: the processor's limit in pixels; None: `vision.image_size`.
    """
    limit, step = longest_edge or vision.image_size, vision.patch_size * vision.spatial_merge_size
    height, width = (int(each) for each in size)
    ratio = max(height / limit, width / limit)
    if ratio > 1:
        height, width = int(height / ratio), int(width / ratio)
    return ((height - 1) // step + 1) * step, ((width - 1) // step + 1) * step
