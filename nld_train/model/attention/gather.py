"""The exchange of keys and values over a context-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from nld_train.masking.context_parallel import ContextShard, shard_tensor
from nld_train.masking.layout import StreamLayout

if TYPE_CHECKING:
    from nld_train.model.streams import Attend, StreamContext


@dataclass(frozen=True)
class Exchange:
    """Which keys a rank of a context-parallel group gets for a micro-batch.

    Clean keys are gathered from all ranks. Noisy ones are visible only inside their block: where no block lies on two
    ranks, each rank keeps its own, which is half the bytes.

    Attributes:
        kept: the first tokens of the rank's shard, whose keys are not gathered: its noisy ones, or 0.
        order: int64, puts what is gathered into the order of the streams; on the device.
        keys: int64 `[n]`, indices in the stacked streams of the keys that the rank then has; None for all.
    """

    kept: int
    order: Tensor
    keys: Tensor | None

    @classmethod
    def of(cls, shard: ContextShard, layout: StreamLayout, device: torch.device) -> Exchange:
        """The same decision on every rank: it follows from the layout of the whole micro-batch."""
        if layout.noisy is None or shard.cuts(layout.noisy.blocks):
            return cls(0, shard_tensor(shard, "order", device), None)
        kept = shard.noisy_length // shard.size
        clean = torch.arange(shard.noisy_length, shard.noisy_length + shard.length)
        order = shard_tensor(replace(shard, noisy_length=0), "order", device)
        return cls(kept, order, torch.cat([shard.indices[:kept], clean]))

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values after one all-gather.

        The backward pass is a reduce-scatter of the gradients that each rank's queries give them.

        Args:
            key: `[b, groups, S / ranks, head_dim]`, this rank's.
            value: the same.

        Returns:
            Two tensors `[b, groups, n, head_dim]`, n the number of `keys`, or S.
        """
        both = torch.stack([key, value])
        own = both[:, :, :, self.kept :].movedim(3, 0).contiguous()
        group = parallel_state.get_context_parallel_group()
        gathered = gather_from_sequence_parallel_region(own, group=group)[self.order].movedim(0, 3)
        if self.kept:
            gathered = torch.cat([both[:, :, :, : self.kept], gathered], dim=3)
        return gathered[0], gathered[1]


def with_all_keys(attend: Attend) -> Attend:
    """A backend that takes the keys of the whole streams, for contexts in which a rank has a selection of them.

    In the place of the others, which no query of the rank sees, it gets zeros.
    """

    def attend_all(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
        if context.keys is not None:
            total, indices = context.layout.total_length, context.keys.to(key.device)
            key, value = (
                heads.new_zeros(*heads.shape[:2], total, heads.shape[3]).index_copy(2, indices, heads)
                for heads in (key, value)
            )
        return attend(query, key, value, context)

    return attend_all
