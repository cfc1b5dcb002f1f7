"""Low-rank changes of Megatron's linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685).

A change is named after the Hugging Face tensor that it belongs to. Megatron's linear layers of attention's input and of
the MLP's input are several of these in one: their outputs are those of query, key and value, interleaved by key-value
group, and those of gate and up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nld_train.config.low_rank import SPLIT_INPUTS, linear_shapes
from nld_train.model.adapter_files import AdapterShape
from nld_train.model.build import mark_shards

# The linear layers of Megatron's attention and MLP, and what they consist of.
ATTENTION_LINEARS = {"linear_qkv": ("q_proj", "k_proj", "v_proj"), "linear_proj": ("o_proj",)}
MLP_LINEARS = {"linear_fc1": ("gate_proj", "up_proj"), "linear_fc2": ("down_proj",)}


class LowRankChange(MegatronModule):
    """`lora_alpha / rank * B A x` beside a linear layer `W x`.

    Where W is sharded over tensor-parallel ranks along its inputs, so is A, and B is replicated; where it is sharded
    along its outputs, so is B, and A is replicated.

    Args:
        config: Megatron's.
        shape: rank and lora_alpha.
        target: name of the linear layer, one of `LORA_TARGETS`.
    """

    def __init__(self, config: TransformerConfig, shape: AdapterShape, target: str) -> None:
        super().__init__(config)
        self.shape = shape
        self.splits_inputs = target in SPLIT_INPUTS
        inputs, outputs = _sizes(config)[target]
        self.down: torch.nn.Module
        self.up: torch.nn.Module
        common: dict[str, Any] = {"config": config, "init_method": torch.nn.init.zeros_, "bias": False}
        if self.splits_inputs:
            self.down = RowParallelLinear(inputs, shape.rank, input_is_parallel=True, skip_bias_add=False, **common)
            self.up = replicated = torch.nn.Linear(shape.rank, outputs, bias=False, dtype=config.params_dtype)
        else:
            self.down = replicated = torch.nn.Linear(inputs, shape.rank, bias=False, dtype=config.params_dtype)
            self.up = ColumnParallelLinear(shape.rank, outputs, **common)
        # Each rank has a shard of the sequence: Megatron all-reduces the gradients of weights with this mark.
        replicated.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        mark_shards(self)

    def forward(self, inputs: Tensor, adapted: Tensor | None = None) -> Tensor:
        """The term that is added to the linear layer's output.

        Args:
            inputs: `[S, b, inputs]`, those of the linear layer: a shard of the features, or with sequence parallelism
                of the sequence, as there.
            adapted: 1 where the change is on, 0 elsewhere, broadcast to `[S, b, 1]`; None if it is on everywhere.

        Returns:
            `[S, b, outputs]`, sharded as the linear layer's output is.
        """
        if adapted is not None:
            inputs = inputs * adapted
        update: Tensor = _product(self.up, _product(self.down, inputs)) * self.shape.scale
        return update

    @torch.no_grad()
    def product(self) -> Tensor:
        """`lora_alpha / rank * B A` in float32, this rank's shard."""
        down, up = cast(Tensor, self.down.weight), cast(Tensor, self.up.weight)
        return self.shape.scale * (up.float() @ down.float())


class LoraChanges(MegatronModule):
    """The changes of an attention's or an MLP's linear layers, which are on in every forward pass.

    They are added by hooks on the linear layers, so that those, and what calls them, stay Megatron's.

    Args:
        parent: Megatron's attention or MLP; the module becomes its attribute `lora`.
        linears: names of its linear layers, and the targets that each consists of.
        shape: rank, lora_alpha and targets.
    """

    def __init__(self, parent: Any, linears: dict[str, tuple[str, ...]], shape: AdapterShape) -> None:
        super().__init__(parent.config)
        self._linears = {name: targets for name, targets in linears.items() if set(targets) & set(shape.targets)}
        self._hooks: list[RemovableHandle] = []
        for name, targets in self._linears.items():
            linear = getattr(parent, name)
            for target in targets:
                if target in shape.targets:
                    self.add_module(target, LowRankChange(parent.config, shape, target).to(linear.weight))
            self._hooks.append(linear.register_forward_hook(_Adding(self, targets)))

    def changes(self) -> Iterator[tuple[str, LowRankChange]]:
        """Each change with the name of its target."""
        for name, module in self.named_children():
            assert isinstance(module, LowRankChange)
            yield name, module

    @torch.no_grad()
    def merge(self, parent: Any) -> None:
        """Adds the changes to the weights of the linear layers, in float32, and takes the hooks away."""
        for name, targets in self._linears.items():
            weight = getattr(parent, name).weight
            for target, part in zip(targets, parts(weight, targets, self.config), strict=True):
                if (change := self._modules.get(target)) is not None:
                    part.copy_(part.float() + cast(LowRankChange, change).product().view(part.shape))
        for hook in self._hooks:
            hook.remove()


def parts(whole: Tensor, targets: tuple[str, ...], config: TransformerConfig, axis: int = 0) -> tuple[Tensor, ...]:
    """Views of the targets' rows in the weight of a Megatron linear layer, or of their features in its output.

    Args:
        whole: this rank's weight, or an output `[..., features]`.
        targets: that it consists of.
        config: Megatron's.
        axis: of the outputs: 0 in a weight, -1 in an output.

    Returns:
        For each target, with the axis divided into `[groups, outputs of a group]`.
    """
    if len(targets) == 1:
        return (whole.unflatten(axis, (1, -1)),)
    tensor, sizes = config.tensor_model_parallel_size, _sizes(config)
    groups = 1
    if "q_proj" in targets:
        assert config.num_query_groups is not None
        groups = config.num_query_groups // tensor
    widths = [sizes[target][1] // tensor // groups for target in targets]
    return whole.unflatten(axis, (groups, -1)).split(widths, dim=1 if axis == 0 else -1)


class _Adding:
    """A forward hook that adds changes to the output of a linear layer."""

    def __init__(self, lora: LoraChanges, targets: tuple[str, ...]) -> None:
        self.lora, self.targets = lora, targets

    def __call__(self, linear: Any, arguments: tuple[Any, ...], result: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        inputs, (output, bias) = arguments[0], result
        if (scale := getattr(linear, "layer_norm_weight", None)) is not None:
            # Transformer Engine's layer, which has the norm before it inside.
            inputs = F.rms_norm(inputs, (inputs.shape[-1],), scale, self.lora.config.layernorm_epsilon)
        changed = []
        for target, part in zip(self.targets, parts(output, self.targets, self.lora.config, axis=-1), strict=True):
            change = self.lora._modules.get(target)
            changed.append(part if change is None else part + change(inputs).view(part.shape))
        return torch.cat(changed, dim=-1).flatten(-2), bias


def _product(linear: torch.nn.Module, rows: Tensor) -> Tensor:
    """Megatron's linear layers return a bias beside the product."""
    result = linear(rows)
    product: Tensor = result[0] if isinstance(result, tuple) else result
    return product


def _sizes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each target."""
    hidden, inner, groups = config.hidden_size, config.ffn_hidden_size, config.num_query_groups
    size = config.kv_channels
    assert size is not None
    assert groups is not None
    assert inner is not None
    return linear_shapes(hidden, size * config.num_attention_heads, size * groups, inner)
