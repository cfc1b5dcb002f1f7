"""Finding and composing the YAML files under `configs/`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nld_train.config.load import load_config, unknown_key_message
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.packaged import packaged_directory

ROOT_NAME = "train"


def config_directory() -> Path:
    """The folder of the YAML files."""
    return packaged_directory("configs", f"{ROOT_NAME}.yaml")


def compose_config(overrides: Sequence[str] = ()) -> Config:
    """Compose a `Config` as `nld-train` does from its command line, without running anything.

    `overrides` are command-line arguments such as `experiment=paper_8b` or `batch.micro_size=2`. Raises `UserError` if
    they cannot be composed or converted. The result is not validated: callers call `validate`.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            composed = compose(ROOT_NAME, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_message(error)) from error
    return load_config(composed)


@cache
def default_config() -> Config:
    """What `compose_config` makes without overrides, composed once: Hydra takes a third of a second for it."""
    return compose_config()


def composition_message(error: Exception) -> str:
    """One line that says what Hydra or OmegaConf could not compose, with the names that would be valid."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options or ()) or "none"
        return f"{group or 'configuration'}={name}: no such file under configs/{group}; valid: {options}"
    message = " ".join(str(error).partition("See https://")[0].split())
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value (quote special characters): {message}"
    key = re.search(r"Could not override '([^']+)'", message)
    return _override_message(key.group(1), error, message) if key else message


def _override_message(key: str, error: Exception, message: str) -> str:
    """Lists the valid keys: those of the node in which OmegaConf did not find the key."""
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if parent is None or not hasattr(parent, "keys"):
        return message
    full_key = getattr(cause, "full_key", None) or key
    return unknown_key_message(full_key, [str(name) for name in parent if name != "hydra"])
