"""Vision tower and projector of a vision-language model: transformers' own modules, replicated on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nld_train.config.image_tokens import PATCHES_TOGETHER, patch_count
from nld_train.config.schema import ModelConfig
from nld_train.config.vision_settings import projector_settings, vision_settings
from nld_train.model.vision.pictures import CHANNELS, Pictures


class VisionEncoder(torch.nn.Module):
    """Features of pictures, one per `[IMG]` token, as wide as the text model.

    The tower has the whole picture and the projector the whole feature on each tensor-parallel rank, which compute the
    same bits from the same gradients, so nothing is reduced over them.

    Args:
        model: with a tower.
        dtype: of the weights.
        recompute: whether the tower's layers are computed again in the backward pass.
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype, recompute: bool = False) -> None:
        super().__init__()
        from transformers import PixtralVisionModel
        from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector

        assert model.vision is not None
        self.shape = model.vision
        settings = wrapper_config(model)
        self.vision_tower = PixtralVisionModel(settings.vision_config)
        self.multi_modal_projector = Mistral3MultiModalProjector(settings)
        if recompute:
            self.vision_tower.gradient_checkpointing_enable({"use_reentrant": False})
        self.to(dtype)

    def forward(self, pictures: Pictures) -> Tensor:
        """`[n, hidden_size]`: the features of all pictures, of each row by row; at least one picture."""
        return torch.cat([self._features(group) for group in self._groups(pictures)])

    def blank(self) -> Tensor:
        """The feature of a black picture of one `[IMG]` token, `[1, hidden_size]`."""
        edge = self.shape.patch_size * self.shape.spatial_merge_size
        device = self.vision_tower.patch_conv.weight.device
        return self(Pictures(torch.zeros(1, CHANNELS, edge, edge, device=device), torch.tensor([[edge, edge]])))

    def _features(self, pictures: Pictures) -> Tensor:
        sizes = [tuple(size) for size in pictures.sizes.tolist()]
        height, width = pictures.sizes.amax(dim=0).tolist()
        pixels = pictures.pixel_values[:, :, :height, :width]
        patches = self.vision_tower(pixels, image_sizes=sizes).last_hidden_state
        features: Tensor = self.multi_modal_projector(patches.squeeze(0), sizes)
        return features

    def _groups(self, pictures: Pictures) -> Iterator[Pictures]:
        """Pictures one after another that have no more than `PATCHES_TOGETHER`, or a single larger one."""
        begin, patches = 0, 0
        for number, size in enumerate(pictures.sizes.tolist()):
            more = patch_count(self.shape, size)
            if number > begin and patches + more > PATCHES_TOGETHER:
                yield pictures.part(begin, number)
                begin, patches = number, 0
            patches += more
        yield pictures.part(begin, len(pictures))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VisionEncoder:
        """Torch's, for a change of type or device, but the rotary frequencies stay float32.

        The tower computes angles in float32, from frequencies that a change to bfloat16 would have rounded before.
        """
        before = {(module, name): buffer for module in self.modules() for name, buffer in module._buffers.items()}
        super()._apply(fn, recurse)
        for (module, name), buffer in before.items():
            changed = module._buffers[name]
            if buffer is not None and changed is not None and changed.dtype != buffer.dtype:
                module._buffers[name] = buffer.to(changed.device)
        return self


def wrapper_config(model: ModelConfig) -> Any:
    """The `Mistral3Config` of transformers that describes a model's tower and projector; of its text only the width."""
    from transformers import Mistral3Config

    vision = model.vision
    assert vision is not None
    return Mistral3Config(
        vision_config=vision_settings(vision),
        text_config={"model_type": "ministral3", "hidden_size": model.hidden_size, "rms_norm_eps": model.rms_norm_eps},
        **projector_settings(vision),
        attn_implementation="sdpa",
    )


class NoGradient(torch.autograd.Function):
    """Embeddings as they are, of which the backward pass goes through features that have no part in them, as zeros.

    The reduction of gradients overlaps with the backward pass and needs a gradient of every weight on every rank, in
    one order: a rank without pictures has to compute one too.
    """

    @staticmethod
    def forward(ctx: Any, embedded: Tensor, features: Tensor) -> Tensor:
        """`embedded`."""
        ctx.of = features.shape, features.dtype, features.device
        return embedded.view_as(embedded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the embeddings, and zeros."""
        shape, dtype, device = ctx.of
        return gradient, torch.zeros(shape, dtype=dtype, device=device)
