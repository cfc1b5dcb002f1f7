"""How long the collective operations of a run wait for the other processes."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from tiny_runs import TINY_MODEL, composed

from nld_train.training.loop.parallel import parallel_groups


def test_half_a_minute_is_thirty_seconds_in_every_group() -> None:
    with parallel_groups(composed(*TINY_MODEL, "execution.device=cpu", "execution.timeout_minutes=0.5")):
        groups = {group.group_desc: group for group in dist.distributed_c10d._world.pg_map}
        # Megatron passes no timeout to this one; the model has no experts.
        del groups["EXPERT_DATA_PARALLEL_GROUP_GLOO"]
        assert len(groups) > 10
        for name, group in groups.items():
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=30), name
