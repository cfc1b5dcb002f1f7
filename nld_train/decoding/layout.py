"""The layout of a command: how many processes share one model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace

from nld_train.config.schema import Config, ParallelConfig
from nld_train.config.validate_layout import validate_model_parallel
from nld_train.errors import UserError
from nld_train.processes import rank, world_size


@dataclass(frozen=True)
class Layout:
    """The processes of one model.

    Attributes:
        tensor: tensor-parallel ranks.
        pipeline: pipeline stages.

    Raises:
        UserError: one of them is below 1.
    """

    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, ranks in (("tensor", self.tensor), ("pipeline", self.pipeline)):
            if ranks < 1:
                raise UserError(f"--{name}: {ranks} is not 1 or more")

    @property
    def processes(self) -> int:
        """Number of processes of one model."""
        return self.tensor * self.pipeline

    def applied(self, config: Config) -> Config:
        """The settings with this layout and no other parallelism.

        Raises:
            UserError: the model cannot be divided into this layout.
        """
        parallel = ParallelConfig(
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=None,
            sequence=False,
            context=1,
            overlap_grad_reduce=False,
            overlap_param_gather=False,
        )
        divided = replace(config, parallel=parallel)
        try:
            validate_model_parallel(divided)
        except UserError as error:
            raise UserError(str(error).replace("parallel.", "--")) from error
        return divided

    def require_one_model(self) -> None:
        """Refuses a number of processes other than that of one model.

        Raises:
            UserError: torchrun has started fewer or more than one model needs.
        """
        if world_size() != self.processes:
            raise self._refusal("")

    def require_whole_models(self) -> None:
        """Refuses a number of processes that is no multiple of one model's.

        Raises:
            UserError: torchrun has started another number.
        """
        if world_size() % self.processes:
            raise self._refusal("a multiple of ")

    def _refusal(self, how_many: str) -> UserError:
        return UserError(
            f"--tensor {self.tensor} x --pipeline {self.pipeline}: need {how_many}{self.processes} processes, and "
            f"there are {world_size()}; start as many with torchrun --nproc-per-node"
        )


ONE_PROCESS = Layout()


@contextmanager
def only_rank_zero_prints() -> Iterator[None]:
    """Standard output of the other processes is discarded: it would repeat that of rank 0."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
