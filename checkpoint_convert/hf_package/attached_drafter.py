"""A drafter adapter that was attached with PEFT: its LoRA layers are in the model, and on in drafting passes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from checkpoint_convert.hf_package.encoder import Encoder


class AttachedDrafter:
    """Active LoRA adapters of PEFT on the attention's output projections alone.

    The layers are recognised by what they have, so that PEFT is not imported: `PeftModel.from_pretrained`,
    `load_adapter`, `get_peft_model` and `inject_adapter_in_model` make the same ones.

    Attributes:
        names: of the adapters.

    Args:
        layers: PEFT's layers around `o_proj` with one of the adapters.
        names: of the adapters.
    """

    def __init__(self, layers: list[Any], names: frozenset[str]) -> None:
        self._layers, self.names = layers, names

    @classmethod
    def find(cls, encoder: Encoder) -> AttachedDrafter | None:
        """The adapters of a model; None if there are none, or if they are disabled."""
        projections: list[Any] = output_projections(encoder)
        own = set(map(id, projections))
        around = [module for module in projections if is_lora(module) and not module.disable_adapters]
        names = {name for module in around for name in module.active_adapters if name in module.lora_A}
        others: list[Any] = [module for module in encoder.modules() if is_lora(module) and id(module) not in own]
        names -= {name for module in others for name in module.lora_A}
        layers = [module for module in around if names & set(module.lora_A)]
        return cls(layers, frozenset(names)) if names else None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside this context the model runs without the adapters, which are on again afterwards.

        Adapters that `merge_adapter` has added to the weights are subtracted from them and remain separate, as in
        PEFT's own `disable_adapter`.
        """
        active = [list(layer.active_adapters) for layer in self._layers]
        for layer in self._layers:
            if layer.merged:
                layer.unmerge()
        self._activate([[name for name in names if name not in self.names] for names in active])
        try:
            yield
        finally:
            self._activate(active)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside this context, and inside of `off`, the model runs with the adapters."""
        active = [list(layer.active_adapters) for layer in self._layers]
        self._activate([[*names, *sorted(self.names)] for names in active])
        try:
            yield
        finally:
            self._activate(active)

    def _activate(self, names: list[list[str]]) -> None:
        for layer, active in zip(self._layers, names, strict=True):
            # PEFT makes adapters trainable that it activates.
            trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
            layer.set_adapter(active)
            for parameter, was_trained in trained:
                parameter.requires_grad_(was_trained)


def output_projections(encoder: Encoder) -> list[Any]:
    """`o_proj` of each layer, which PEFT may have replaced by a layer around it."""
    attentions: list[Any] = [layer.self_attn for layer in encoder.layers]
    return [attention.o_proj for attention in attentions]


def is_lora(module: nn.Module) -> bool:
    """Whether a module is a layer that PEFT has put around another one, with LoRA adapters."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")
