"""Checks of the files that a run reads and writes, before it starts.

torch is imported for the last of them only: whether the paths of a command line exist is known at once.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nld_train.config.schema import Config
from nld_train.config.stage_kinds import running_kinds
from nld_train.data.chat.run_template import require_one_template
from nld_train.data.manifest import check_against_model
from nld_train.data.pictures.check import check_against_vision
from nld_train.data.sample_sets import require_kinds_of_data, train_sources, validation_sources
from nld_train.data.token_index import check_files as check_token_set
from nld_train.data.vocabulary import check_special_ids, check_tokenizer
from nld_train.errors import UserError
from nld_train.training.checkpoint.hub import initial_path
from nld_train.training.checkpoint.paths import checkpoints_directory, find_initial_checkpoint, written_checkpoints
from nld_train.training.loop.heartbeats import require_monitor
from nld_train.training.metrics.tensorboard_log import require_tensorboard


def check_paths(config: Config) -> None:
    """Checks that what a run reads exists, and that it could write; imports no torch, and creates nothing.

    Raises:
        UserError: a token set, a tokenizer or `init.checkpoint` that does not exist, a package that is not installed,
            or a `run.dir` that cannot be written.
    """
    require_tensorboard(config)
    require_monitor(config)
    for prefix in _prefixes(config):
        check_token_set(prefix)
    tokenizer = config.data.tokenizer
    if tokenizer is not None and not Path(tokenizer).is_dir():
        raise UserError(
            f"data.tokenizer={tokenizer}: there is no such folder; name that of the data's tokenizer, or null"
        )
    directory = Path(config.run.dir)
    # A run that continues needs no initial weights, which may have been deleted since.
    if config.init.checkpoint is not None and not written_checkpoints(checkpoints_directory(directory)):
        find_initial_checkpoint(initial_path(config.init.checkpoint))
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "Permission denied" if existing.is_dir() else f"{existing} is no folder"
        raise UserError(f"run.dir: {directory} cannot be written ({reason}); name another folder")


def _prefixes(config: Config) -> list[str]:
    """The token sets that the stages of a run read, each once."""
    stages = config.run.stages
    sources = [
        source for name in stages for source in (*train_sources(config, name), *validation_sources(config, name))
    ]
    return list(dict.fromkeys(source.prefix for source in sources))


def check_files(config: Config) -> None:
    """Checks these files before process groups and models are built.

    The test of `run.dir` comes last, since it creates that directory.

    Raises:
        UserError: token sets that are missing, damaged or of another model; special ids of the model that are not those
            of the data or the tokenizer; texts in a stage for conversations, or the reverse; conversations of several
            chat templates in one stage; validation that would use a sample twice; conversations of which none can be
            asked; a `run.dir` that cannot be written.
    """
    for prefix in _prefixes(config):
        check_against_model(prefix, config.model.vocab_size, config.model.mask_token_id, config.data.tokenizer)
        check_against_vision(prefix, config.model.vision)
        check_special_ids(prefix, config.model, config.data.tokenizer)
    require_kinds_of_data(config)
    for name in config.run.stages:
        require_one_template(f"stages.{name}", (*train_sources(config, name), *validation_sources(config, name)))
    if config.data.tokenizer is not None:
        check_tokenizer(config.data.tokenizer, config.model, "data.tokenizer")
    if config.validation.every > 0:
        from nld_train.data.samples import refuse_repeated_samples

        refuse_repeated_samples(config, chat=False)
    if config.evaluation.every > 0:
        from nld_train.data.questions import stage_questions

        for name, kind in running_kinds(config).items():
            if kind.decode_variants(config, config.stages[name]):
                stage_questions(config, name)
    try:
        _require_writable(Path(config.run.dir))
    except OSError as error:
        if error.errno == errno.ENOSPC and Path(config.run.dir).is_dir():
            return  # what a killed run left there is deleted before anything is written
        raise UserError(
            f"run.dir: {config.run.dir} cannot be written ({error.strerror}); name another folder"
        ) from error


def _require_writable(directory: Path) -> None:
    """Creates the run's directory and tests whether files can be written there.

    Raises:
        OSError: it cannot be created or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
