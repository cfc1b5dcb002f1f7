"""The drafter adapter: LoRA on the attention's output projections, active in drafting passes only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from checkpoint_convert.hf_package.encoder import Encoder

DIRECTORY = "linear_spec_lora"
FILES = ("adapter_config.json", "adapter_model.safetensors")


class Drafter:
    """PEFT's LoRA layers around a model's `o_proj` modules.

    Outside of `installed` the model has its plain projections: state dict, training and saving do not include the
    adapter.

    Attributes:
        directory: of the adapter's files.

    Args:
        encoder: of the model.
        directory: with the two `FILES`.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the adapter targets other modules than `o_proj`, or its shapes are not the model's; or the model has
            a LoRA already, to which PEFT would not add another one.
    """

    def __init__(self, encoder: Encoder, directory: str | Path) -> None:
        self._attentions: list[Any] = [layer.self_attn for layer in encoder.layers]
        self._plain = [attention.o_proj for attention in self._attentions]
        if any(not isinstance(projection, nn.Linear) for projection in self._plain):
            raise ValueError(
                f"{directory}: a drafter adapter needs plain projections; add the model's LoRA to its weights"
            )
        self._adapted = _adapted_projections(self._plain, str(directory))
        self.directory = Path(directory)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside this context the model runs with the adapter."""
        self._match_device_and_type()
        self._set_projections(self._adapted)
        try:
            yield
        finally:
            self._set_projections(self._plain)

    def _match_device_and_type(self) -> None:
        """Moves the adapter to the model's device and type, since `model.to` does not move it."""
        for plain, adapted in zip(self._plain, self._adapted, strict=True):
            weight, trained = plain.weight, next(adapted.lora_A.parameters())
            if (trained.device, trained.dtype) != (weight.device, weight.dtype):
                adapted.to(device=weight.device, dtype=weight.dtype)

    def _set_projections(self, projections: list[Any]) -> None:
        for attention, projection in zip(self._attentions, projections, strict=True):
            attention.o_proj = projection


def _adapted_projections(plain: list[Any], directory: str) -> list[Any]:
    """PEFT's layers around the plain ones, which PEFT finds in a skeleton of the model that has only these."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(f"the drafter adapter in {directory} needs the package peft") from error
    skeleton = _skeleton(plain)
    config = PeftConfig.from_pretrained(directory)
    if config.peft_type != "LORA" or set(config.target_modules) != {"o_proj"}:
        raise ValueError(f"{directory}: not a LoRA on o_proj alone, as a drafter adapter must be")
    # With a task type PEFT requires methods of a whole language model.
    config.task_type = None
    trained = [projection.weight.requires_grad for projection in plain]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            peft_model: Any = PeftModel.from_pretrained(skeleton, directory, config=config)
    except (RuntimeError, UserWarning) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{directory}: the adapter does not fit this model: {reason}") from error
    for projection, was_trained in zip(plain, trained, strict=True):
        projection.weight.requires_grad_(was_trained)
    return [layer.self_attn.o_proj.eval() for layer in peft_model.base_model.model.encoder.layers]


def _skeleton(plain: list[Any]) -> nn.Module:
    """`encoder.layers.{i}.self_attn.o_proj`, and nothing else."""
    root, encoder = nn.Module(), nn.Module()
    layers = nn.ModuleList()
    for projection in plain:
        layer, attention = nn.Module(), nn.Module()
        attention.o_proj = projection
        layer.self_attn = attention
        layers.append(layer)
    encoder.layers = layers
    root.encoder = encoder
    return root
