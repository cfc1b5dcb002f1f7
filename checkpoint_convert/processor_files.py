"""The files with which transformers makes the input of a vision-language model of texts and pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nld_train.config.schema import VisionConfig

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# The means and standard deviations of CLIP's training pictures, to which the Pixtral processor normalises.
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_BICUBIC = 3


def write_processor(directory: Path, vision: VisionConfig, origin: Path | None) -> None:
    """Writes them into the directory of an export: those of the original model, else such as the tower needs.

    Args:
        directory: of the export.
        vision: its tower.
        origin: directory of the original model, or of the copies of its files in an import; None if it is not known.
    """
    own = [] if origin is None else [name for name in PROCESSOR_FILES if (origin / name).is_file()]
    for name in own:
        assert origin is not None
        shutil.copyfile(origin / name, directory / name)
    if own:
        return
    pictures = image_processor(vision)
    (directory / PROCESSOR_FILES[0]).write_text(json.dumps(processor(vision, pictures), indent=2) + "\n")
    # Read by releases of transformers that look for the image processor in a file of its own.
    (directory / PROCESSOR_FILES[1]).write_text(json.dumps(pictures, indent=2) + "\n")


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
