"""A small vision tower, drawn pictures, and texts around them, for the tests of several packages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.config.image_tokens import image_tokens
from nld_train.config.schema import VisionConfig

# No size follows from another; a merged patch is 8 x 8 pixels.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 64,
    "spatial_merge_size": 2,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": "false",
    "image_token_id": 10,
    "image_break_token_id": 12,
    "image_end_token_id": 13,
}


def vision_override(**changes: object) -> str:
    """The value of `model.vision` on the command line."""
    return "{" + ", ".join(f"{name}: {value}" for name, value in (VISION | changes).items()) + "}"


def drawn(size: tuple[int, int], seed: int) -> Tensor:
    """A picture of random pixels, float32 `[3, height, width]`."""
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


def text_with_pictures(vision: VisionConfig, parts: Sequence[int | tuple[int, int]], seed: int) -> list[int]:
    """Tokens: for a number so many random ones from 20 to 66, for a size those of a picture."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, int):
            tokens += torch.randint(20, 67, (part,), generator=generator).tolist()
        else:
            tokens += image_tokens(vision, part)
    return tokens
