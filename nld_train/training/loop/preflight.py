"""Checks of the files that a run reads and writes, before it starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nld_train.config.schema import Config
from nld_train.data.manifest import check_against_model
from nld_train.data.samples import refuse_repeated_samples
from nld_train.errors import UserError


def check_files(config: Config) -> None:
    """Checks these files before process groups and models are built.

    The test of `run.dir` comes last, since it creates that directory.

    Raises:
        UserError: token sets that are missing, damaged or of another model; validation that would use a sample twice; a
            `run.dir` that cannot be written.
    """
    stages = [config.stages[name] for name in config.run.stages]
    sources = [*config.data.train, *config.data.validation, *(source for s in stages for source in s.train or ())]
    for prefix in dict.fromkeys(source.prefix for source in sources):
        check_against_model(prefix, config.model.vocab_size, config.model.mask_token_id, config.data.tokenizer)
    if config.validation.every > 0:
        refuse_repeated_samples(config)
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
