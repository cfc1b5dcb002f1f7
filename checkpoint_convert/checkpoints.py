"""Finding out what a path means, and opening it: a Hugging Face directory, a Megatron checkpoint, a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.importing import SOURCE
from checkpoint_convert.megatron import MegatronWeights
from checkpoint_convert.source_config import SourceConfig, read_json, read_source_config
from nld_train.config.compose import compose_config
from nld_train.config.saved import read_saved_config
from nld_train.config.schema import Config
from nld_train.data.tokenizer_files import TOKENIZER
from nld_train.errors import UserError
from nld_train.training.checkpoint.paths import (
    CONFIG_FILE,
    PROGRESS_FILE,
    DanglingLatestError,
    find_checkpoint,
    is_hugging_face,
)

# Runs that start from runs: more links than this is a circle.
_MOST_LINKS = 16


def open_weights(path: Path, mask_token_id: int | None = None) -> HuggingFaceWeights | MegatronWeights:
    """Weights of a checkpoint of either kind.

    Raises:
        UserError: it is neither, or damaged.
    """
    if is_hugging_face(path):
        return HuggingFaceWeights(path, mask_token_id)
    return MegatronWeights(require_megatron(path))


def require_megatron(path: Path) -> Path:
    """The Megatron checkpoint that a path means.

    Raises:
        UserError: there is none.
    """
    found = find_checkpoint(path)
    if found is None:
        raise UserError(
            f"{path}: is neither a checkpoint, nor a run with checkpoints/latest, nor a Hugging Face directory"
        )
    return found


@dataclass(frozen=True)
class Record:
    """What is known of how a checkpoint came about.

    Attributes:
        directory: the checkpoint.
        config: the settings of the run that wrote it; None for an imported checkpoint.
        progress: where that run stood; empty for an imported checkpoint.
        origin: the Hugging Face model that the first weights came from, through however many runs; None for random
            weights, or where it is lost.
        lost: a checkpoint that the weights came from, and that is not there any more; None where all are.
        tokenizers: directories in which its tokenizer may lie, the best first.
        imported: what the import noted, empty for a run's checkpoint.
    """

    directory: Path
    config: Config | None
    progress: dict[str, Any]
    origin: SourceConfig | None
    lost: Path | None
    tokenizers: tuple[Path, ...]
    imported: dict[str, Any]


def read_record(directory: Path) -> Record:
    """What lies beside a Megatron checkpoint, and beside what it started from.

    Raises:
        UserError: a file there is damaged.
    """
    config = _run_config(directory)
    progress, note = directory / PROGRESS_FILE, directory / SOURCE / "conversion.json"
    origin, lost = _origin(directory)
    tokenizers = [directory / TOKENIZER]
    if config is not None and config.data.tokenizer is not None:
        tokenizers.append(Path(config.data.tokenizer))
    if origin is not None:
        imported = origin.directory.name == SOURCE
        tokenizers.append(origin.directory.with_name(TOKENIZER) if imported else origin.directory)
    return Record(
        directory=directory,
        config=config,
        progress=read_json(progress) if progress.is_file() else {},
        origin=origin,
        lost=lost,
        tokenizers=tuple(tokenizers),
        imported=read_json(note) if note.is_file() else {},
    )


def _run_config(directory: Path) -> Config | None:
    path = directory / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return read_saved_config(path.read_text(), compose_config())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _origin(directory: Path) -> tuple[SourceConfig | None, Path | None]:
    """The first model of a chain of runs, or the link of it that is not there any more."""
    for _ in range(_MOST_LINKS):
        for candidate in (directory / SOURCE, directory):
            if is_hugging_face(candidate):
                return read_source_config(candidate), None
        config = _run_config(directory)
        if config is None or config.init.checkpoint is None:
            return None, None
        started = Path(config.init.checkpoint)
        try:
            directory = find_checkpoint(started) or started
        except DanglingLatestError as error:
            return None, error.pointer.with_name(error.name or "nothing")
        if not directory.exists():
            return None, directory
    return None, None
