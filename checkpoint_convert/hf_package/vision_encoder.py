"""The text model's layers beside a Pixtral vision tower and its projector, both of `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PixtralVisionModel
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector

from checkpoint_convert.hf_package.encoder import Encoder


class VisionLanguageEncoder(Encoder):
    """Embedding, layers and final norm, and what makes features of pictures."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_tower = PixtralVisionModel(config.vision_config)
        self.multi_modal_projector = Mistral3MultiModalProjector(config.projector())

    def picture_features(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """One feature per `[IMG]` token, `[n, h]`, picture after picture.

        Args:
            pixel_values: `[n, 3, H, W]`, padded on the right and below.
            image_sizes: int64 `[n, 2]`, height and width without padding; None for `H` and `W`.
        """
        if image_sizes is None:
            image_sizes = torch.tensor([pixel_values.shape[-2:]] * len(pixel_values))
        sizes = [tuple(size) for size in image_sizes.tolist()]
        # One by one: the tower's mask over all pictures would be dense.
        features = [
            self._features(pixels[None, :, :height, :width], (height, width))
            for pixels, (height, width) in zip(pixel_values, sizes, strict=True)
        ]
        return torch.cat(features)

    def _features(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        patches = self.vision_tower(pixels, image_sizes=[size]).last_hidden_state
        features: Tensor = self.multi_modal_projector(patches.squeeze(0), [size])
        return features
