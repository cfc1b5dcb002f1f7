"""Where the checkpoints of a run are, what their files are called, and which one a path refers to; imports no torch.

    <run.dir>/checkpoints/step_00000120/    weights and optimizer state, in Megatron's sharded format
                          step_00000120/config.yaml      the resolved settings that wrote it
                          step_00000120/model.json       the model's shapes, under the names of `config.ModelConfig`
                          step_00000120/progress.json    how far the run was
                          step_00000120/software.json    version and commit of the code that wrote it
                          step_00000120/tokenizer/       that of `data.tokenizer`, the chat template that of the data
                          step_00000120/linear_spec_lora/    the drafter adapter, in a stage that trains one
                          step_00000120/lora/            the LoRA of a stage with one, whose weights are without it
                          step_00000120/manifest.json    size and checksum of every file, written last
                          latest                         name of the newest one

A directory without `.tmp` in its name was written to its end; `manifest` checks whether it still is what was written.
Under `checkpoints/` only directories with such names belong to the run. Whatever else is there, `step_best` or an
archive, is neither read nor changed.
No random state is saved, because there is none: order and noise are functions of the seed and the sample index.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from nld_train.errors import UserError
from nld_train.files import open_regular

LATEST = "latest"
# End of the name of a directory that is being written, or deleted.
UNFINISHED = ".tmp"
CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.json"
PROGRESS_FILE = "progress.json"
_HUGGING_FACE_CONFIG = "config.json"


_NAME = re.compile(r"step_[0-9]{8,18}")
_UNFINISHED_NAME = re.compile(rf"({_NAME.pattern})(\.[0-9]+)?{re.escape(UNFINISHED)}")
# A name is shorter: what else `latest` holds is not read to its end.
_LATEST_BYTES = 256


class DanglingLatestError(UserError):
    """`latest` cannot be read, or names no checkpoint beside it.

    Attributes:
        missing: the checkpoint that it names; `latest` itself where it holds no name.
    """

    def __init__(self, pointer: Path, problem: str, name: str | None = None) -> None:
        super().__init__(f"{pointer} {problem}")
        self.missing = pointer if name is None else pointer.with_name(name)


def checkpoints_directory(run_directory: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_directory / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint after a step of a run."""
    return f"step_{step:08d}"


def step_of_name(name: str) -> int:
    """The step in the name of a checkpoint."""
    assert is_checkpoint_name(name), name
    return int(name.rpartition("_")[2])


def is_checkpoint_name(name: str) -> bool:
    """Whether `checkpoint_name` makes this name."""
    return _NAME.fullmatch(name) is not None and checkpoint_name(int(name.rpartition("_")[2])) == name


def written_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `<run.dir>/checkpoints` that were written to their end, the newest first.

    Raises:
        OSError: the directory exists and cannot be listed.
    """
    found = [Path(entry) for entry in _entries(directory) if is_checkpoint_name(entry.name) and entry.is_dir()]
    return sorted(found, key=lambda path: step_of_name(path.name), reverse=True)


def obstructed_checkpoints(directory: Path) -> list[Path]:
    """What has the name of a checkpoint and is no directory: a checkpoint of that step could not be written.

    Raises:
        OSError: the directory exists and cannot be listed.
    """
    return sorted(Path(entry) for entry in _entries(directory) if is_checkpoint_name(entry.name) and not entry.is_dir())


def unfinished_checkpoints(directory: Path) -> list[Path]:
    """The directories that are being written or deleted, or were when the run was killed.

    Raises:
        OSError: the directory exists and cannot be listed.
    """
    return sorted(
        Path(entry)
        for entry in _entries(directory)
        if (match := _UNFINISHED_NAME.fullmatch(entry.name)) is not None
        and is_checkpoint_name(match[1])
        and entry.is_dir()
    )


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except FileNotFoundError:
        if directory.is_symlink():  # to a disk that is not there: what it has must not be begun again
            raise


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that `latest` names; None where there is no `latest`.

    Args:
        directory: of the checkpoints.

    Raises:
        DanglingLatestError: `latest` cannot be read, or names no checkpoint beside it.
    """
    pointer = directory / LATEST
    try:
        with open_regular(pointer) as file:
            name = file.read(_LATEST_BYTES).decode(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DanglingLatestError(pointer, f"cannot be read ({error.strerror})") from error
    if not is_checkpoint_name(name):
        raise DanglingLatestError(pointer, f"must hold the name of a checkpoint beside it, not {name[:40]!a}")
    if not (directory / name).is_dir():
        raise DanglingLatestError(pointer, f"names {name}, which does not exist", name)
    return directory / name


def is_hugging_face(directory: Path) -> bool:
    """Whether a directory is a Hugging Face model, and not a checkpoint of this project."""
    return (directory / _HUGGING_FACE_CONFIG).is_file() and not (directory / MODEL_FILE).is_file()


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path refers to; None if there is none.

    Args:
        path: a checkpoint, a run's directory, for its newest one, or its directory of checkpoints.

    Raises:
        DanglingLatestError: `latest` cannot be read, or names no checkpoint beside it.
    """
    for directory in (path, checkpoints_directory(path)):
        if (found := latest_checkpoint(directory)) is not None:
            path = found
            break
    return path if (path / MODEL_FILE).is_file() else None


def find_initial_checkpoint(path: Path) -> Path:
    """The directory that `init.checkpoint` refers to: a Hugging Face directory, a checkpoint, or a run's newest one.

    Raises:
        UserError: there is none.
    """
    if is_hugging_face(path):
        return path
    try:
        directory = find_checkpoint(path)
    except DanglingLatestError as error:
        raise UserError(f"init.checkpoint: {error}; name another one") from error
    if directory is None:
        raise UserError(f"init.checkpoint: {path} is neither a checkpoint nor a run directory with checkpoints/latest")
    return directory
