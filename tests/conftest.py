"""What several packages of tests share. The slow references in `naive.py` beside this file can be imported by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def groups() -> Iterator[torch.device]:
    """Megatron's groups with this process alone, on the CPU. One module long: some tests start groups of their own."""
    from nld_train.config.compose import compose_config
    from nld_train.training.parallel import parallel_groups

    with parallel_groups(compose_config(["execution.device=cpu"])) as device:
        yield device
