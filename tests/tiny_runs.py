"""A tiny model, a small token set, and runs over them: what the tests of training share."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from forked import Finished

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from nld_train.config.schema import Config

TESTS = Path(__file__).parent
# Large starting weights: with small ones every logit is near 0, and a wrong model would score like a right one.
TINY_MODEL = (
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=4",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.head_dim=8",
    "model.vocab_size=67",
    "model.initializer_range=0.2",
    "diffusion.block_size=5",
    "batch.global_size=8",
    "batch.micro_size=2",
    "batch.sequence_length=24",
    # Adam divides a gradient by its own size: with a smaller epsilon it makes steps of rounding errors.
    "optimizer.epsilon=1e-5",
)
STEP_TOKENS = 8 * 24
# Over it: half the layers and half the batch, for what starts many runs.
SHORT = ("model.num_hidden_layers=2", "batch.global_size=4", "batch.micro_size=4")
SHORT_STEP_TOKENS = 4 * 24


def write_token_set(prefix: Path, seed: int) -> str:
    """A token set with ids 4..66 and documents of 1 to 30 tokens, some shorter than a block; returns its prefix."""
    from nld_train.data.packed import indexed_dataset_module

    generator = np.random.default_rng(seed)
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for length in generator.integers(0, 30, 120):
        builder.add_document(np.append(generator.integers(4, 67, length), 2), [length + 1])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def data_overrides(prefix: str) -> tuple[str, ...]:
    """A run over one token set, without tokenizer, validation, decoding and Weights & Biases."""
    return (
        f"data.train=[{{prefix: {prefix}, weight: 1}}]",
        f"data.validation=[{{prefix: {prefix}, weight: 1}}]",
        "data.tokenizer=null",
        "data.workers=0",
        "validation.every=0",
        "validation.samples=16",
        "evaluation.every=0",
        "logging.wandb.mode=disabled",
        "execution.device=cpu",
        "execution.timeout_minutes=5",
    )


def two_stages(ar_steps: int, joint_steps: int, step_tokens: int = STEP_TOKENS) -> tuple[str, ...]:
    """Two short stages whose learning rates change at every step: up to 2e-3, and down to 2e-4."""
    overrides = [f"stages.ar.tokens={ar_steps * step_tokens}", f"stages.joint.tokens={joint_steps * step_tokens}"]
    for stage in ("ar", "joint"):
        schedule = f"stages.{stage}.schedule"
        overrides += [f"{schedule}.learning_rate=2e-3", f"{schedule}.final_learning_rate=2e-4"]
        overrides += [f"{schedule}.warmup_fraction=0.5", f"{schedule}.decay_fraction=0.5"]
    return tuple(overrides)


def short_stages(ar_steps: int, joint_steps: int) -> tuple[str, ...]:
    """The same, of a run with `SHORT`."""
    return two_stages(ar_steps, joint_steps, SHORT_STEP_TOKENS)


@cache
def _composed_groups(*overrides: str) -> Config:
    from nld_train.config.compose import compose_config

    return compose_config(list(overrides))


@cache
def _parsed(override: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def _has_dotted_key(override: str) -> bool:
    return "." in override.partition("=")[0]


def composed(*overrides: str) -> Config:
    """What `compose_config` makes of overrides, in a tenth of the time where they only give other values to keys.

    Hydra reads all YAML files anew for each run, and takes as long as a step of a tiny model.
    """
    from hydra.core.override_parser.types import OverrideType

    from nld_train.config.compose import compose_config
    from nld_train.config.load import config_from_dict, config_to_dict

    values = config_to_dict(_composed_groups(*(override for override in overrides if not _has_dotted_key(override))))
    for override in map(_parsed, filter(_has_dotted_key, overrides)):
        *parents, key = (override.key_or_group or "").split(".")
        node: Any = values
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        plain = override.type == OverrideType.CHANGE and not override.is_sweep_override()
        # Merged mappings and what is derived from the name are Hydra's.
        if not (plain and isinstance(node, dict) and key in node) or override.key_or_group == "run.name":
            return compose_config(list(overrides))
        if isinstance(node[key], dict) or isinstance(override.value(), dict):
            return compose_config(list(overrides))
        node[key] = deepcopy(override.value())
    return config_from_dict(values)


@contextmanager
def undrawn() -> Iterator[None]:
    """What is trained inside makes its report and does not draw it, which takes as long as a tiny run itself."""
    with pytest.MonkeyPatch.context() as patch:
        write = lambda figure, path, **_: Path(path).write_bytes(b"\x89PNG")  # noqa: E731
        patch.setattr("matplotlib.figure.Figure.savefig", write)
        yield


@cache
def freeze_libraries() -> None:
    """Megatron collects garbage at every save, and would look through all objects of all libraries each time."""
    import nld_train.training.loop.run  # noqa: F401

    gc.collect()
    gc.freeze()


def train_here(directory: Path, *overrides: str, drawn: bool = False) -> Path:
    """Trains in this process, through the settings of the command line; returns the directory."""
    freeze_libraries()
    from nld_train.config.validate import validate
    from nld_train.training.loop import run

    config = composed(f"run.dir={directory}", *overrides)
    validate(config, world_size=1)
    with nullcontext() if drawn else undrawn():
        assert run.train(config) == 0
    return directory


def run_python(words: Sequence[str], timeout: float) -> Finished:
    """Starts an interpreter of its own, where the start is what is tested; keeps both output streams in one."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


def records_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def newest_checkpoint(directory: Path) -> Path:
    """What `latest` names."""
    checkpoints = directory / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip()


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, weights and optimizer state, whole and by name, through torch's own reader."""
    from torch.distributed import checkpoint as torch_checkpoint
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = torch_checkpoint.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it reads in one process, as it is told to
        torch_checkpoint.load(tensors, checkpoint_id=checkpoint, no_dist=True)
    return tensors
