"""`transformers`' Mistral3 wrapper as the oracle of a vision-language model."""

from __future__ import annotations

import torch
from oracle import build, copy_weights, hugging_face_config, in_megatron_layout, tiny_config
from pictures import vision_override
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from nld_train.config.schema import Config
from nld_train.config.vision_settings import projector_settings, vision_settings
from nld_train.model.ministral3 import Ministral3Model


def vision_config(bias: bool = False, **changes: object) -> Config:
    """A run of a tiny vision-language model; see `oracle.tiny_config`."""
    return tiny_config(model__vision=vision_override(multimodal_projector_bias=str(bias).lower()), **changes)


def wrapper(config: Config, seed: int = 0) -> Mistral3ForConditionalGeneration:
    """Random weights, large enough that pictures tell."""
    vision = config.model.vision
    assert vision is not None
    text = hugging_face_config(config.model).to_dict()
    settings = Mistral3Config(
        vision_config=vision_settings(vision),
        text_config=text,
        tie_word_embeddings=False,
        attn_implementation="eager",
        **projector_settings(vision),
    )
    model = Mistral3ForConditionalGeneration(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(0.3 * random + (0.0 if name.endswith("bias") else 1.0))
            else:
                width = 1 if "embed" in name else weight[0].numel()
                weight.copy_(1.2 * random * width**-0.5)
    return model


def in_our_layout(config: Config, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the wrapper under the names of our model."""
    ours = {}
    text = {"lm_head.weight": tensors["lm_head.weight"]}
    for name, tensor in tensors.items():
        part = name.removeprefix("model.")
        if part.startswith("language_model."):
            text[f"model.{part.removeprefix('language_model.')}"] = tensor
        elif part.startswith(("vision_tower.", "multi_modal_projector.")):
            ours[f"vision.{part}"] = tensor
    return ours | in_megatron_layout(config.model, text)


def vision_pair(config: Config, seed: int = 0) -> tuple[Ministral3Model, Mistral3ForConditionalGeneration]:
    """The model under test and the oracle, with the same weights; every parameter is copied."""
    ours, theirs = build(config), wrapper(config, seed)
    copy_weights(ours, in_our_layout(config, dict(theirs.named_parameters())))
    return ours, theirs
