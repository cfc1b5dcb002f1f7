"""Where the checkpoints of a run are, what their files are called, and which one a path refers to; imports no torch.

    <run.dir>/checkpoints/step_00000120/    weights and optimizer state, in Megatron's sharded format
                          step_00000120/config.yaml      the resolved settings that wrote it
                          step_00000120/model.json       the model's shapes, under the names of `config.ModelConfig`
                          step_00000120/progress.json    how far the run was
                          step_00000120/software.json    version and commit of the code that wrote it
                          step_00000120/tokenizer/       a copy of that of `data.tokenizer`
                          step_00000120/linear_spec_lora/    the drafter adapter, in a stage that trains one
                          step_00000120/manifest.json    size and checksum of every file, written last
                          latest                         name of the newest one

A directory without `.tmp` in its name was written to its end; `manifest` checks whether it still is what was written.
No random state is saved, because there is none: order and noise are functions of the seed and the sample index.
"""

from __future__ import annotations

from pathlib import Path

from nld_train.errors import UserError

LATEST = "latest"
# End of the name of a directory that is being written, or deleted.
UNFINISHED = ".tmp"
CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.json"
PROGRESS_FILE = "progress.json"
_HUGGING_FACE_CONFIG = "config.json"


class DanglingLatestError(UserError):
    """`latest` does not contain the name of an existing directory beside it.

    Attributes:
        pointer: the file.
        name: its content, without spaces around it.
    """

    def __init__(self, pointer: Path, name: str) -> None:
        super().__init__(f"{pointer}: must hold the name of a checkpoint beside it, not {name!r}")
        self.pointer = pointer
        self.name = name


def checkpoints_directory(run_directory: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_directory / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint after a step of a run; names are sorted as their steps are."""
    return f"step_{step:08d}"


def step_of_name(name: str) -> int:
    """The step in the name of a checkpoint."""
    return int(name.rpartition("_")[2])


def written_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `<run.dir>/checkpoints` that were written to their end, the newest first."""
    return sorted((path for path in directory.glob("step_*") if not path.name.endswith(UNFINISHED)), reverse=True)


def unfinished_checkpoints(directory: Path) -> list[Path]:
    """The directories that are being written or deleted, or were when the run was killed."""
    return sorted(directory.glob(f"step_*{UNFINISHED}"))


def latest_name(directory: Path) -> str | None:
    """The content of `latest` in a directory of checkpoints; None where there is none."""
    try:
        return (directory / LATEST).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def is_hugging_face(directory: Path) -> bool:
    """Whether a directory is a Hugging Face model, and not a checkpoint of this project."""
    return (directory / _HUGGING_FACE_CONFIG).is_file() and not (directory / MODEL_FILE).is_file()


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path refers to; None if there is none.

    Args:
        path: a checkpoint, a run's directory, for its newest one, or its directory of checkpoints.

    Raises:
        DanglingLatestError: `latest` names no existing directory.
    """
    for directory in (path, checkpoints_directory(path)):
        if (directory / LATEST).is_file():
            path = _named_by(directory)
            break
    return path if (path / MODEL_FILE).is_file() else None


def _named_by(directory: Path) -> Path:
    name = latest_name(directory) or ""
    # Neither empty nor a path: `latest` names one of its neighbours.
    if name in ("", ".", "..") or "/" in name or not (directory / name).is_dir():
        raise DanglingLatestError(directory / LATEST, name)
    return directory / name
