"""Megatron's data parallelism with gradient buckets of one size in every layout."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from nld_train.config.counts import bucket_elements


class BucketedDataParallel(DistributedDataParallel):
    """Megatron's wrapper, which cuts every buffer of gradients into buckets, whether or not their reduction overlaps.

    Megatron has buckets only where that makes a step faster: with overlap, on the first pipeline rank, in its first
    chunk. But a checkpoint gathers the optimizer's state of one bucket at a time, in float32 and on the device: the
    whole model's would not fit beside what a step leaves there.
    """

    @property
    def bucket_size(self) -> int:
        """Elements at which a bucket ends."""
        return bucket_elements(parallel_state.get_data_parallel_world_size())

    @bucket_size.setter
    def bucket_size(self, _: Any) -> None:
        """Megatron's choice."""
