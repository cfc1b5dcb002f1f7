"""The files with which transformers makes the input of a vision-language model of texts and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nld_train.config.schema import VisionConfig
from nld_train.data.pictures.processor import processor_of
from nld_train.outside_json import read_object

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# The means and standard deviations of CLIP's training pictures, to which the Pixtral processor normalises.
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_BICUBIC = 3


def write_processor(directory: Path, vision: VisionConfig, origin: Path | None) -> None:
    """Writes them into the directory of an export: those of the original model, with all that transformers needs.

    Settings that the original's files lack are those with which this project reads them: transformers has other ones,
    of which the patches of a picture would not be the tower's.

    Args:
        directory: of the export.
        vision: its tower.
        origin: directory of the original model, or of the copies of its files in an import; None if it is not known.

    Raises:
        UserError: the original's processor is of another kind than Pixtral's.
    """
    found = {} if origin is None else {name: _read(origin / name) for name in PROCESSOR_FILES}
    whole, alone = (found.get(name, {}) for name in PROCESSOR_FILES)
    images = image_processor(vision) | alone | (whole.get("image_processor") or {})
    own = {"patch_size": vision.patch_size, "spatial_merge_size": vision.spatial_merge_size}
    if whole or alone:
        images["size"] = {"longest_edge": processor_of(whole | own, str(origin), alone).longest_edge}
    complete = processor(vision, images) | whole | {"image_processor": images} | own
    (directory / PROCESSOR_FILES[0]).write_text(json.dumps(complete, indent=2) + "\n")
    # Read by releases of transformers that look for the image processor in a file of its own.
    (directory / PROCESSOR_FILES[1]).write_text(json.dumps(images, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def processor(vision: VisionConfig, pictures: dict[str, Any]) -> dict[str, Any]:
    """`processor_config.json` of a `PixtralProcessor`."""
    return {
        "processor_class": "PixtralProcessor",
        "image_processor": pictures,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }


def image_processor(vision: VisionConfig) -> dict[str, Any]:
    """The settings of a `PixtralImageProcessor`."""
    return {
        "processor_class": "PixtralProcessor",
        "image_processor_type": "PixtralImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": vision.image_size},
        "patch_size": {"height": vision.patch_size, "width": vision.patch_size},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }
