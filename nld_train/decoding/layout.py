"""How many processes share the model that a command reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace

from nld_train.config.schema import Config, ParallelConfig
from nld_train.config.validate_layout import validate_cut
from nld_train.errors import UserError
from nld_train.processes import rank
from nld_train.training.loop.parallel import world_size


@dataclass(frozen=True)
class Layout:
    """The processes of one model.

    Attributes:
        tensor: parts of every layer.
        pipeline: parts of the stack of layers.

    Raises:
        UserError: one of them is below 1.
    """

    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, parts in (("tensor", self.tensor), ("pipeline", self.pipeline)):
            if parts < 1:
                raise UserError(f"--{name}: {parts} is not 1 or more")

    @property
    def processes(self) -> int:
        """Of a whole model."""
        return self.tensor * self.pipeline

    def applied(self, config: Config) -> Config:
        """The settings with this layout and nothing else that divides the work.

        Raises:
            UserError: the model cannot be cut so.
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
        cut = replace(config, parallel=parallel)
        try:
            validate_cut(cut)
        except UserError as error:
            raise UserError(str(error).replace("parallel.", "--")) from error
        return cut

    def require_one_model(self) -> None:
        """Refuses processes that would have nothing to do.

        Raises:
            UserError: torchrun has started fewer or more than one model needs.
        """
        if world_size() != self.processes:
            raise self._refusal("")

    def require_whole_models(self) -> None:
        """Refuses processes of which no whole models can be made.

        Raises:
            UserError: torchrun has started no multiple of what one model needs.
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
