"""The check of a set's pictures against a model's vision tower."""

from __future__ import annotations

from nld_train.config.schema import VisionConfig
from nld_train.data.manifest import PictureManifest, occurrences_of, read_manifest
from nld_train.data.pictures.processor import processor_of
from nld_train.data.pictures.store import check_pictures
from nld_train.errors import UserError


def check_against_vision(prefix: str, vision: VisionConfig | None) -> None:
    """Refuses a set whose pictures a model cannot take; one without a manifest passes.

    Args:
        prefix: path of the set without suffix.
        vision: the model's tower, `model.vision`.

    Raises:
        UserError: the model has no tower, or one with other patches or image tokens; image tokens without pictures; or
            files of pictures that are missing or damaged.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        return
    pictures = manifest.pictures
    if pictures is None or not pictures.occurrences:
        if vision is not None and (count := occurrences_of(prefix, vision.image_token_id)):
            raise UserError(
                f"model.vision.image_token_id={vision.image_token_id} occurs {count:,} times in {prefix}.bin, which "
                "has no pictures: prepare the set again, with --pictures"
            )
        return
    check_pictures(prefix)
    if vision is None:
        raise UserError(
            f"{prefix} has {pictures.pictures:,} pictures, and the model has no vision tower: name a vision-language "
            "model (model.vision)"
        )
    _compare(prefix, pictures, vision)


def _compare(prefix: str, pictures: PictureManifest, vision: VisionConfig) -> None:
    processor = processor_of(pictures.processor, f"{prefix}.manifest.json")
    prepared = {
        "patch_size": processor.patch_size,
        "spatial_merge_size": processor.spatial_merge_size,
        "image_token_id": pictures.image_token_id,
        "image_break_token_id": pictures.image_break_token_id,
        "image_end_token_id": pictures.image_end_token_id,
    }
    for key, value in prepared.items():
        if getattr(vision, key) != value:
            raise UserError(
                f"model.vision.{key}={getattr(vision, key)}: {prefix} was prepared with {value}; prepare it again with "
                "the model's tokenizer and --picture-processor"
            )
    if processor.longest_edge > vision.image_size:
        raise UserError(
            f"model.vision.image_size={vision.image_size}: {prefix} was prepared with pictures of up to "
            f"{processor.longest_edge} pixels (longest_edge); prepare it again with at most {vision.image_size}"
        )
