"""The image processor of a vision-language model: transformers' own, and the settings that it is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nld_train.data.pictures.decode import decode_picture
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.outside_json import parse_object, read_bytes, read_object

if TYPE_CHECKING:
    from PIL.Image import Image

    from nld_train.data.pictures.store import StoredPicture

# The file of a processor as transformers writes it, and that of earlier versions, which has the image processor alone.
PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
# What a tower's patch and merger are, and what an image processor computes; other keys of the files change nothing.
_SETTINGS = (
    *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"),
    *("resample", "rescale_factor", "image_mean", "image_std"),
)
_TYPES = ("PixtralImageProcessor", "PixtralImageProcessorFast", "PixtralImageProcessorPil")


@dataclass(frozen=True)
class PictureProcessor:
    """Settings of the processor.

    Attributes:
        patch_size: pixels of a patch of the tower, in each direction.
        spatial_merge_size: patches that become an image token, in each direction.
        longest_edge: a larger picture is made smaller, so that no edge has more pixels.
        settings: the others of transformers' image processor, such as `image_mean`; by default its own.
    """

    patch_size: int
    spatial_merge_size: int = 2
    longest_edge: int = 1540
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def token_size(self) -> int:
        """Pixels of an image token, in each direction."""
        return self.patch_size * self.spatial_merge_size

    def resized(self, height: int, width: int, where: object) -> tuple[int, int]:
        """Height and width of a picture after resizing, multiples of `token_size`.

        Raises:
            UserError: nothing is left of it.
        """
        from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

        picture = np.broadcast_to(np.uint8(0), (height, width, 3))
        edge, token = self.longest_edge, self.token_size
        size = get_resize_output_image_size(picture, (edge, edge), (token, token), "channels_last")
        if min(size) < 1:
            raise UserError(
                f"{where}: of the picture's {width} x {height} pixels, at most {edge} in each direction leave an edge "
                "without any: it is too narrow"
            )
        return int(size[0]), int(size[1])

    def pixel_values(self, image: Image) -> NDArray[np.float32]:
        """The input of the tower, float32 `[3, height, width]`: resized, scaled and normalised by transformers.

        It is computed by PIL, also where torchvision is installed, which gives slightly other numbers.

        Args:
            image: in RGB.
        """
        token = {"height": self.token_size, "width": self.token_size}
        found = self._images([image], patch_size=token, return_tensors="np")
        values: NDArray[np.float32] = found["pixel_values"][0].astype(np.float32, copy=False)
        return values

    @cached_property
    def _images(self) -> Any:
        from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

        return PixtralImageProcessorPil(
            patch_size={"height": self.patch_size, "width": self.patch_size},
            size={"longest_edge": self.longest_edge},
            **self.settings,
        )

    def input_of(self, picture: StoredPicture, where: object) -> NDArray[np.float32]:
        """The tower's input of a picture of a set, float32 `[3, height, width]`.

        Raises:
            UserError: it is broken, or has another size than the set was prepared with.
        """
        found = self.pixel_values(decode_picture(picture.data, None, where))
        if found.shape[1:] != (picture.height, picture.width):
            raise UserError(
                f"{where}: is resized to {found.shape[1]} x {found.shape[2]} pixels, and was to {picture.height} x "
                f"{picture.width} when the set was prepared: prepare it again"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """The content of a `processor_config.json`, which `transformers.AutoProcessor` and `picture_processor` read."""
        images = {key: value for key, value in self._images.to_dict().items() if not key.startswith("_")}
        images |= {"image_processor_type": "PixtralImageProcessor"}
        if "resample" in images:
            images["resample"] = int(images["resample"])
        return {
            "processor_class": "PixtralProcessor",
            "image_processor": images,
            "patch_size": self.patch_size,
            "spatial_merge_size": self.spatial_merge_size,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        }

    def save(self, directory: str) -> None:
        """Writes `processor_config.json` into the directory of a tokenizer."""
        write_atomically(Path(directory, PROCESSOR), json.dumps(self.as_json(), indent=2) + "\n")


def picture_processor(given: str, option: str = "--picture-processor") -> PictureProcessor:
    """The processor of a directory or a file, or of JSON itself.

    Args:
        given: a directory with one of the files, such a file, or a JSON object of the same keys.
        option: names it in messages.

    Raises:
        UserError: there is none, or one of another kind than Pixtral's.
    """
    if given.lstrip().startswith("{"):
        return processor_of(parse_object(given, option), option)
    path = Path(given)
    if path.is_dir():
        files = [path / name for name in (PROCESSOR, IMAGE_PROCESSOR) if (path / name).is_file()]
        if not files:
            raise UserError(f"{option}: {given} holds no {PROCESSOR} and no {IMAGE_PROCESSOR}")
        whole = read_object(path / PROCESSOR) if (path / PROCESSOR).is_file() else {}
        images = read_object(path / IMAGE_PROCESSOR) if (path / IMAGE_PROCESSOR).is_file() else {}
        return processor_of(whole, str(files[0]), images)
    return processor_of(parse_object(read_bytes(path, f"{option} {given}"), given), given)


def processor_of(whole: dict[str, Any], where: str, images: dict[str, Any] | None = None) -> PictureProcessor:
    """The processor of the content of its files.

    Args:
        whole: of a `processor_config.json`.
        where: the file, for messages.
        images: of a `preprocessor_config.json`, which earlier versions of transformers write beside it.

    Raises:
        UserError: it is of another kind than Pixtral's.
    """
    images = whole.get("image_processor") or images or whole
    if not isinstance(images, dict):
        raise UserError(f"{where}: image_processor is no object")
    kind = images.get("image_processor_type", _TYPES[0])
    if kind not in _TYPES:
        raise UserError(f"{where}: image_processor_type is {kind}; pictures are processed as Pixtral's ({_TYPES[0]})")
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if images.get(name, True) is not True:
            raise UserError(f"{where}: {name} must be true, as the tower expects it")
    size = images.get("size", {})
    patch = whole.get("patch_size", images.get("patch_size"))
    return PictureProcessor(
        patch_size=_whole_number(patch["height"] if isinstance(patch, dict) else patch, "patch_size", where),
        spatial_merge_size=_whole_number(whole.get("spatial_merge_size", 2), "spatial_merge_size", where),
        longest_edge=_whole_number(size.get("longest_edge", 1540), "size.longest_edge", where),
        settings={name: images[name] for name in _SETTINGS if name in images},
    )


def _whole_number(value: Any, name: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {name} must be a whole number of at least 1, not {value!r}")
    return value
