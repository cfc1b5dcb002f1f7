"""Opens the weights at a path, and reads the records of a Megatron checkpoint and its origin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.card_metadata import hub_name
from checkpoint_convert.checkpoint_paths import require_megatron
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.importing import CONVERSION, SOURCE
from checkpoint_convert.megatron import MegatronWeights
from checkpoint_convert.source_config import BLOCK_SIZE, SourceConfig, block_size, clean_stream, read_source_config
from nld_train.config.compose import default_config
from nld_train.config.schema import Config, StageConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.data.chat.run_template import own_template, run_template
from nld_train.data.tokenizer_files import TOKENIZER, read_tokenizer
from nld_train.decoding.clean_stream import PAPER, CleanStream
from nld_train.decoding.trained_stage import clean_stream_of
from nld_train.outside_json import read_object
from nld_train.training.checkpoint.contents import read_progress, saved_config
from nld_train.training.checkpoint.paths import (
    CONFIG_FILE,
    PROGRESS_FILE,
    DanglingLatestError,
    find_checkpoint,
    is_hugging_face,
)

# Maximum length of a chain of runs that start from each other; a longer one is taken to be circular.
_MAX_RUNS = 16


def open_weights(
    path: Path, mask_token_id: int | None = None, vision: bool | None = None
) -> HuggingFaceWeights | MegatronWeights:
    """Weights of a Hugging Face directory, a Megatron checkpoint, or a run's newest checkpoint.

    Args:
        path: of either.
        mask_token_id: for a directory whose config has none.
        vision: whether with the vision tower of a directory, see `HuggingFaceWeights`.

    Raises:
        UserError: the path is none of these, or is damaged.
    """
    if is_hugging_face(path):
        return HuggingFaceWeights(path, mask_token_id, vision)
    return MegatronWeights(require_megatron(path))


@dataclass(frozen=True)
class Run:
    """A run that made a checkpoint.

    Attributes:
        directory: the checkpoint.
        config: the run's settings.
        progress: `progress.json`; empty where there is none.
    """

    directory: Path
    config: Config
    progress: dict[str, Any]

    @property
    def stages_begun(self) -> tuple[str, ...]:
        """Names of its stages up to the one that wrote the checkpoint."""
        stages = self.config.run.stages
        return stages[: stages.index(self.progress["stage"]) + 1] if self.progress.get("stage") in stages else stages

    @property
    def on_conversations(self) -> bool:
        """Whether one of these stages trains on conversations."""
        return any(kind_of(self.config.stages[name]).data == "conversations" for name in self.stages_begun)


@dataclass(frozen=True)
class Record:
    """How a Megatron checkpoint was made.

    Attributes:
        directory: the checkpoint.
        config: the configuration of the run that wrote it; None for an imported checkpoint.
        progress: `progress.json` of that run; empty for an imported checkpoint.
        origin: the original model: the Hugging Face model that the weights were first loaded from, possibly several
            runs before; None for random weights, or if it was not found.
        lost: a checkpoint in that chain of runs that no longer exists; None if all do.
        tokenizers: directories that may contain its tokenizer, in the order of preference.
        imported: the record of the import; empty for a run's checkpoint.
        runs: the run that wrote it and those that it goes back to, the newest first.
    """

    directory: Path
    config: Config | None
    progress: dict[str, Any]
    origin: SourceConfig | None
    lost: Path | None
    tokenizers: tuple[Path, ...]
    imported: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def origin_names(self) -> tuple[Path | None, str | None]:
        """Directory of the original model, or of its import, and its name on the Hub, where that is known."""
        if self.origin is None:
            return None, None
        directory = self.origin.directory
        if (note := directory / CONVERSION).is_file():
            return directory, read_object(note).get("hub_name")
        return directory, hub_name(directory)

    @property
    def chat_run(self) -> Run | None:
        """The newest of its runs that trained on conversations: the model answers in their chat template."""
        return next((run for run in self.runs if run.on_conversations), None)

    @property
    def newest_stage(self) -> tuple[Config, StageConfig] | None:
        """The newest stage that trained the model, with its run; None where none did. A drafter stage does not."""
        begun = ((run.config, run.config.stages[name]) for run in self.runs for name in reversed(run.stages_begun))
        return next((each for each in begun if not kind_of(each[1]).trains_adapter), None)

    @property
    def clean_stream(self) -> CleanStream:
        """How its newest stage trained the model to see a text, else the original model."""
        if (newest := self.newest_stage) is not None:
            return clean_stream_of(*newest)
        if self.origin is None:
            return PAPER
        return clean_stream(self.origin.directory / "config.json", self.origin.outer)

    @property
    def chat_template(self) -> str | None:
        """The chat template of the conversations that the model was trained on; None without any, or if it is lost.

        Raises:
            UserError: it was changed since.
        """
        run = self.chat_run
        if run is None:
            return None
        return own_template(read_tokenizer(run.directory / TOKENIZER)) or run_template(run.config)

    @property
    def data(self) -> tuple[str, ...]:
        """Prefixes of the sets that the run was trained on; empty for an imported checkpoint."""
        if self.config is None:
            return ()
        stages = (self.config.stages[name].train or () for name in self.config.run.stages)
        return tuple(source.prefix for sources in (self.config.data.train, *stages) for source in sources)

    @property
    def block_size(self) -> int:
        """Tokens per block: of the run that wrote it, else of the original model, else of the released models."""
        if self.config is not None:
            return self.config.diffusion.block_size
        return (
            BLOCK_SIZE if self.origin is None else block_size(self.origin.directory / "config.json", self.origin.outer)
        )


def read_record(directory: Path) -> Record:
    """Reads the record of a Megatron checkpoint, following the chain of runs that its weights come from.

    Raises:
        UserError: a file there is damaged.
    """
    config, note = _run_config(directory), directory / SOURCE / CONVERSION
    origin, lost, runs = _history(directory)
    tokenizers = [directory / TOKENIZER]
    if config is not None and config.data.tokenizer is not None:
        tokenizers.append(Path(config.data.tokenizer))
    if origin is not None:
        imported = origin.directory.name == SOURCE
        tokenizers.append(origin.directory.with_name(TOKENIZER) if imported else origin.directory)
    return Record(
        directory=directory,
        config=config,
        progress=_progress(directory),
        origin=origin,
        lost=lost,
        tokenizers=tuple(tokenizers),
        imported=read_object(note) if note.is_file() else {},
        runs=runs,
    )


def _run_config(directory: Path) -> Config | None:
    return saved_config(directory, default_config()) if (directory / CONFIG_FILE).is_file() else None


def _progress(directory: Path) -> dict[str, Any]:
    return asdict(read_progress(directory)) if (directory / PROGRESS_FILE).is_file() else {}


def _history(directory: Path) -> tuple[SourceConfig | None, Path | None, tuple[Run, ...]]:
    """The original model of a chain of runs, or the checkpoint of the chain that no longer exists; and the runs."""
    runs: list[Run] = []
    for _ in range(_MAX_RUNS):
        for candidate in (directory / SOURCE, directory):
            if is_hugging_face(candidate):
                return read_source_config(candidate), None, tuple(runs)
        config = _run_config(directory)
        if config is not None:
            runs.append(Run(directory, config, _progress(directory)))
        if config is None or config.init.checkpoint is None:
            return None, None, tuple(runs)
        started = Path(config.init.checkpoint)
        try:
            directory = find_checkpoint(started) or started
        except DanglingLatestError as error:
            return None, error.missing, tuple(runs)
        if not directory.exists():
            return None, directory, tuple(runs)
    return None, None, tuple(runs)
