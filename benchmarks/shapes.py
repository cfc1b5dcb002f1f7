"""Runs with released shapes on one device, on random tokens, so that no corpus is needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch

from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.planner.memory import largest_memory

SHAPES = ("3b", "8b", "14b")
# Fraction of the device's free memory; the rest is for workspaces, fragmentation and memory that the planner does not
# count.
_USABLE = 0.88
# Vocabulary size up to which a token file has two bytes per id.
_SHORT_IDS = 2**16
# If the layers need more memory than was counted, one of this many is removed.
_STEP_BACK = 8
Found = TypeVar("Found")
_FIRST_ID = 200  # beyond the special ids of a tokenizer, the mask among them


def write_tokens(prefix: Path, vocabulary: int, tokens: int, document_tokens: int) -> None:
    """Writes a token set of uniform ids; document lengths are geometric with mean `document_tokens`."""
    from nld_train.data.packed import indexed_dataset_module

    generator = np.random.default_rng(1)
    first = min(_FIRST_ID, vocabulary // 2)
    kind = np.uint16 if vocabulary <= _SHORT_IDS else np.int32
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=kind)
    written = 0
    while written < tokens:
        length = int(generator.geometric(1 / document_tokens))
        builder.add_document(generator.integers(first, vocabulary, length), [length])
        written += length
    builder.finalize(f"{prefix}.idx")


@contextmanager
def random_run(shape: str | None, overrides: Sequence[str], document_tokens: int = 1024) -> Iterator[Config]:
    """The settings of a run over random tokens, which are in a temporary folder inside the context.

    Args:
        shape: a name of `SHAPES`, with the batch and blocks of pretraining; None for the quickstart's settings.
        overrides: more settings.
        document_tokens: mean length of a document.
    """
    words = [] if shape is None else [f"model={shape}", "diffusion=pretraining", "batch=paper", "batch.global_size=1"]
    with TemporaryDirectory(prefix="nld-benchmark-") as folder:
        prefix = Path(folder) / "tokens"
        config = compose_config(
            [
                *words,
                f"data.train=[{{prefix: {prefix}, weight: 1}}]",
                "data.validation=[]",
                "data.tokenizer=null",
                "data.workers=0",
                "validation.every=0",
                "evaluation.every=0",
                "logging.wandb.mode=disabled",
                *overrides,
            ]
        )
        samples = 2 * config.batch.global_size * (config.batch.sequence_length + 1)
        write_tokens(prefix, config.model.vocab_size, samples, document_tokens)
        yield config


def with_layers(config: Config, layers: int) -> Config:
    """The same model with another number of layers."""
    return replace(config, model=replace(config.model, num_hidden_layers=layers))


def layers_that_fit(config: Config, free_bytes: int) -> int:
    """The number of layers of a shape that one device can train, by the planner's count of memory.

    Raises:
        UserError: not even one layer fits.
    """
    on_cuda = replace(config, execution=replace(config.execution, device="cuda"))
    for layers in range(config.model.num_hidden_layers, 0, -1):
        if largest_memory(with_layers(on_cuda, layers), 1).total <= _USABLE * free_bytes:
            return layers
    raise UserError(f"model.num_hidden_layers: not one layer of {config.model.name} fits {free_bytes / 2**30:.0f} GiB")


def as_many_as_fit(layers: int, attempt: Callable[[int], Found], fewest: int = 1) -> tuple[Found, list[int]]:
    """Retries with fewer layers until they fit into the device's memory.

    The planner's count may be less than a device needs; then there is still a result with fewer layers.

    Args:
        layers: number of layers of the first attempt.
        attempt: from a number of layers to the result.
        fewest: smallest number of layers to try.

    Returns:
        The result, and the numbers of layers that did not fit.

    Raises:
        UserError: even the fewest do not fit.
    """
    from nld_train.model import streams

    too_many: list[int] = []
    while layers >= fewest:
        try:
            return attempt(layers), too_many
        except torch.cuda.OutOfMemoryError:
            too_many.append(layers)
        # After the handler, because the exception refers to the frames of the attempt, and so to its tensors.
        layers -= max(1, layers // _STEP_BACK)
        streams.clear()
        gc.collect()
        torch.cuda.empty_cache()
    raise UserError(f"--layers: {too_many[-1]} do not fit into the device's memory; use fewer, or a smaller batch")
