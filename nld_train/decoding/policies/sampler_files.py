"""The files of the trained sampler, and the check that it was trained for the model that decodes.

torch is imported where tensors are read or written: whether the files exist is checked before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.errors import UserError
from nld_train.files import open_regular, write_atomically
from nld_train.model.finite import first_non_finite
from nld_train.outside_json import as_record, read_object
from nld_train.printable import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.engines.engine import Engine
    from nld_train.decoding.policies.sampler_network import TrainedSampler

DIRECTORY = "trained_sampler"
_WEIGHTS, _DESCRIPTION = "sampler.safetensors", "sampler.json"
# Number of rows of the embedding that identify a model.
_FINGERPRINT_ROWS = 1024


def sampler_directory(given: str | None, checkpoint: Path) -> Path:
    """The directory of `--sampler`, or the one in the checkpoint."""
    return checkpoint / DIRECTORY if given is None else Path(given)


def embedding_of(engine: Engine) -> Tensor:
    """The token embedding `[V, h]` of an engine without model parallelism, without padding of the vocabulary."""
    module: Any = engine
    # The export's engine has an `encoder`, Megatron's has chunks.
    weight = module.encoder.embed_tokens if hasattr(module, "encoder") else module.chunks[0].embedding.word_embeddings
    embedding: Tensor = weight.weight.detach()[: engine.vocabulary_size]
    assert len(embedding) == engine.vocabulary_size, "the embedding is divided among processes"
    return embedding


def fingerprint(engine: Engine) -> str:
    """Identifies a model; from bf16 values, because an export may store a checkpoint's weights in bf16."""
    import torch

    embedding = embedding_of(engine)
    rows = torch.linspace(0, len(embedding) - 1, min(len(embedding), _FINGERPRINT_ROWS)).long()
    values = embedding[rows.to(embedding.device)].bfloat16().cpu().contiguous()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()


def check_directory(directory: Path) -> None:
    """Refuses to save a sampler in a directory with other files: its content is replaced.

    Raises:
        UserError: it is not a directory and cannot become one, or contains files that do not belong to a sampler.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is no directory; a sampler is saved in one of its own")
    parent = next(parent for parent in directory.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{directory}: cannot be made: {parent} is no directory that can be written to")
    others = sorted({path.name for path in directory.glob("*")} - {_WEIGHTS, _DESCRIPTION})
    if others:
        raise UserError(f"{directory}: holds {others[0]}, and a sampler is saved in a directory of its own")


def save_sampler(directory: Path, sampler: TrainedSampler, engine: Engine, notes: dict[str, Any]) -> None:
    """Writes `sampler.safetensors` and `sampler.json` and replaces any sampler there.

    Args:
        directory: `trained_sampler/` of the model.
        sampler: to save.
        engine: the model that it was trained for.
        notes: how it was trained and its quality; for information only.
    """
    from safetensors.torch import save_file

    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in sampler.state_dict().items()}
    save_file(tensors, temporary / _WEIGHTS)
    description = {"model": fingerprint(engine), "vocabulary_size": engine.vocabulary_size} | asdict(sampler.shape)
    write_atomically(temporary / _DESCRIPTION, json.dumps({**description, **notes}, indent=1) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def require_sampler(directory: Path) -> None:
    """Refuses a missing sampler before any weight is read.

    Raises:
        UserError: there is none.
    """
    for name in (_WEIGHTS, _DESCRIPTION):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: holds no trained sampler ({name} is missing); nld-sampler trains one")


def load_sampler(directory: Path, engine: Engine) -> TrainedSampler:
    """The trained sampler of a model.

    Raises:
        UserError: there is none, it is damaged, or it was trained for other weights.
    """
    import torch
    from safetensors.torch import load_file

    from nld_train.decoding.policies.sampler_network import SamplerShape, TrainedSampler

    require_sampler(directory)
    try:
        description = read_object(directory / _DESCRIPTION)
        # Earlier versions had components of each token, and wrote nothing about it.
        shape = as_record(SamplerShape, {"components_of": "token", **description}, _DESCRIPTION)
        trained_for, vocabulary = description["model"], description["vocabulary_size"]
        open_regular(directory / _WEIGHTS).close()
        tensors = load_file(directory / _WEIGHTS)
        if shape.layers > len(tensors):
            raise UserError(f"{_DESCRIPTION}: layers={shape.layers}, but {_WEIGHTS} has {len(tensors)} tensors")
        # Made without memory: sizes that do not fit the tensors may be of any size.
        with torch.device("meta"):
            sampler = TrainedSampler(shape, int(vocabulary))
        sampler.load_state_dict(tensors, assign=True)
    except Exception as error:  # the errors of safetensors and torch have no common base class
        raise UserError(f"{directory}: cannot be read ({one_line(str(error))})") from error
    if (bad := first_non_finite(sampler.named_parameters())) is not None:
        raise UserError(f"{directory}: tensor {bad} contains NaN or infinity; run nld-sampler again")
    if trained_for != fingerprint(engine):
        raise UserError(
            f"{directory}: this sampler was trained for the weights of another model; run nld-sampler again"
        )
    return sampler
