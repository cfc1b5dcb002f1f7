"""Settings beside a checkpoint, whichever version of this project wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from nld_train.config.load import config_from_dict, config_to_dict
from nld_train.config.schema import Config
from nld_train.errors import UserError


def read_saved_config(text: str, base: Config) -> Config:
    """The settings in a checkpoint's `config.yaml`, in the terms of this version.

    Args:
        text: of the file.
        base: what a key has that the writer did not know yet. A stage that is not in it takes such keys from its first.

    Returns:
        The settings; keys that this version does not know any more are left out.

    Raises:
        UserError: this is no settings file, or a value is of a type that its key cannot have.
    """
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, Mapping):
        raise UserError("holds no settings")
    defaults = config_to_dict(base)
    stages = settings.get("stages")
    if isinstance(stages, Mapping):
        first = next(iter(defaults["stages"].values()))
        defaults["stages"] = {name: defaults["stages"].get(name, first) for name in stages}
    return config_from_dict(_in_terms_of(defaults, settings))


def _in_terms_of(defaults: Any, saved: Any) -> Any:
    """`saved` with exactly the keys of `defaults`, at every depth; all items of a list are like the first default."""
    if isinstance(defaults, list) and isinstance(saved, list) and defaults:
        return [_in_terms_of(defaults[0], item) for item in saved]
    if not isinstance(defaults, Mapping) or not isinstance(saved, Mapping):
        return saved
    return {name: _in_terms_of(value, saved[name]) if name in saved else value for name, value in defaults.items()}
