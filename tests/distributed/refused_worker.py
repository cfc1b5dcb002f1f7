"""One process of a group in which the disk refuses a file to rank 0 (started by `run_ranks`).

refused_worker.py CONFIG.yaml OWNER FUNCTION
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from nld_train.config.load import config_from_yaml
from nld_train.errors import UserError
from nld_train.training.checkpoint import megatron_save
from nld_train.training.loop.run import train

OWNERS = {"megatron_save": megatron_save, "FileSystemWriterAsync": FileSystemWriterAsync}


def refuse_first_rank(owner: Any, name: str) -> None:
    """Where rank 0 alone writes something."""
    write = getattr(owner, name)

    def refuse(*arguments: Any) -> Any:
        if dist.get_rank() == 0:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    setattr(owner, name, refuse)


if __name__ == "__main__":
    refuse_first_rank(OWNERS[sys.argv[2]], sys.argv[3])
    try:
        train(config_from_yaml(Path(sys.argv[1]).read_text()))
    except UserError as error:
        print(f"{error}\n", end="", flush=True)
