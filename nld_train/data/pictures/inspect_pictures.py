"""What `nld-data inspect` needs of a set's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from rich.console import Console

from nld_train.data.manifest import read_manifest
from nld_train.data.pictures.decode import FORMATS
from nld_train.data.pictures.expand import ImageTokens
from nld_train.data.pictures.processor import processor_of
from nld_train.data.pictures.store import StoredPicture
from nld_train.errors import UserError


def image_tokens_of_set(prefix: str) -> ImageTokens | None:
    """The image tokens that a set was prepared with; None for a set without pictures.

    Raises:
        UserError: the manifest is damaged.
    """
    manifest = read_manifest(prefix)
    if manifest is None or (pictures := manifest.pictures) is None:
        return None
    processor = processor_of(pictures.processor, f"{prefix}.manifest.json")
    return ImageTokens(
        patch_size=processor.patch_size,
        spatial_merge_size=processor.spatial_merge_size,
        image_token_id=pictures.image_token_id,
        image_break_token_id=pictures.image_break_token_id,
        image_end_token_id=pictures.image_end_token_id,
    )


def save_pictures(pictures: Sequence[StoredPicture], folder: str, conversation: int, console: Console) -> None:
    """Writes the pictures of a conversation as they came, and prints where.

    Raises:
        UserError: the folder cannot be written.
    """
    from PIL import Image

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            with Image.open(BytesIO(picture.data), formats=FORMATS) as image:
                suffix = (image.format or "picture").lower()
            path = Path(folder, f"conversation-{conversation}-picture-{number}.{suffix}")
            path.write_bytes(picture.data)
            console.print(f"saved {path}", soft_wrap=True)
    except OSError as error:
        raise UserError(f"--save-pictures {folder}: cannot be written ({error.strerror or error})") from error
