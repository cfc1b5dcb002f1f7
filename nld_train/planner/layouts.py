"""Every legal layout of a run on a number of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

from nld_train.config.checks import divisors
from nld_train.config.ranges import check_ranges
from nld_train.config.schema import Config, ParallelConfig
from nld_train.config.validate import validate_relations
from nld_train.errors import UserError

Recompute = Literal["none", "selective", "full"]
# Larger micro-batches use no device better.
_LARGEST_MICRO_BATCH = 64
# Keys that the planner chooses. Those that the command line gives are not changed.
CHOSEN = (
    "parallel.tensor",
    "parallel.context",
    "parallel.pipeline",
    "parallel.virtual_pipeline",
    "parallel.sequence",
    "batch.micro_size",
    "execution.recompute",
)


@dataclass(frozen=True)
class Choices:
    """What a plan may choose.

    Attributes:
        gpus: number of devices.
        node_size: devices of a node: tensor-parallel and context-parallel groups do not cross nodes.
        fixed: keys of `CHOSEN` that the command line gives.
    """

    gpus: int
    node_size: int
    fixed: frozenset[str]


def legal_layouts(config: Config, choices: Choices) -> Iterator[Config]:
    """The settings under every layout that `validate` accepts, without repetitions.

    Ranges are checked once: every size that the planner chooses is a divisor, within the range of its key.
    """
    if _accepts(partial(check_ranges, config)):
        for layout in every_layout(config, choices):
            if _accepts(partial(validate_relations, layout, choices.gpus)):
                yield layout


def every_layout(config: Config, choices: Choices) -> Iterator[Config]:
    """The settings under every layout, legal or not; the simplest comes first."""
    for tensor, pipeline in product(_tensors(config, choices), _pipelines(config, choices)):
        for context in _contexts(config, choices, tensor):
            yield from _with_sizes(
                config, choices, replace(config.parallel, tensor=tensor, context=context, pipeline=pipeline)
            )


def _tensors(config: Config, choices: Choices) -> list[int]:
    if "parallel.tensor" in choices.fixed:
        return [config.parallel.tensor]
    return [size for size in divisors(choices.node_size) if config.model.num_key_value_heads % size == 0]


def _pipelines(config: Config, choices: Choices) -> list[int]:
    if "parallel.pipeline" in choices.fixed:
        return [config.parallel.pipeline]
    return divisors(config.model.num_hidden_layers)


def _contexts(config: Config, choices: Choices, tensor: int) -> list[int]:
    if "parallel.context" in choices.fixed:
        return [config.parallel.context]
    parts = config.batch.sequence_length // 2
    return [size for size in divisors(max(1, choices.node_size // tensor)) if parts % size == 0]


def _virtual(config: Config, choices: Choices, pipeline: int) -> list[int | None]:
    if "parallel.virtual_pipeline" in choices.fixed:
        return [config.parallel.virtual_pipeline]
    if pipeline == 1:
        return [None]
    return [None, *divisors(config.model.num_hidden_layers // pipeline, smallest=2)]


def _sequence(config: Config, choices: Choices, tensor: int) -> list[bool]:
    if "parallel.sequence" in choices.fixed:
        return [config.parallel.sequence]
    return [True, False] if tensor > 1 else [False]


def _micro_sizes(config: Config, choices: Choices) -> list[int]:
    if "batch.micro_size" in choices.fixed:
        return [config.batch.micro_size]
    return [size for size in divisors(config.batch.global_size, most=64) if size <= _LARGEST_MICRO_BATCH]


def _recomputations(config: Config, choices: Choices) -> list[Recompute]:
    return [config.execution.recompute] if "execution.recompute" in choices.fixed else ["none", "selective", "full"]


def _with_sizes(config: Config, choices: Choices, sizes: ParallelConfig) -> Iterator[Config]:
    for virtual, sequence, micro_size, recompute in product(
        _virtual(config, choices, sizes.pipeline),
        _sequence(config, choices, sizes.tensor),
        _micro_sizes(config, choices),
        _recomputations(config, choices),
    ):
        yield replace(
            config,
            parallel=replace(sizes, virtual_pipeline=virtual, sequence=sequence),
            batch=replace(config.batch, micro_size=micro_size),
            execution=replace(config.execution, recompute=recompute),
        )


def _accepts(check: Callable[[], None]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


def override_words(config: Config) -> list[str]:
    """The layout as words of a command line."""
    parallel = config.parallel
    virtual = "null" if parallel.virtual_pipeline is None else str(parallel.virtual_pipeline)
    values = (
        str(parallel.tensor),
        str(parallel.context),
        str(parallel.pipeline),
        virtual,
        str(parallel.sequence).lower(),
        str(config.batch.micro_size),
        config.execution.recompute,
    )
    return [f"{key}={value}" for key, value in zip(CHOSEN, values, strict=True)]
