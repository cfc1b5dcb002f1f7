from collections.abc import Callable
from typing import Any

import pytest

from nld_train.config.compose import compose_config
from nld_train.config.load import config_from_dict, config_to_dict
from nld_train.config.schema import Config

Change = Callable[..., Config]


@pytest.fixture(scope="session")
def tiny() -> Config:
    return compose_config()


@pytest.fixture(scope="session")
def change(tiny: Config) -> Change:
    """Build the tiny config with other values: `change({"batch.micro_size": 2})`."""

    def changed(values: dict[str, Any]) -> Config:
        settings = config_to_dict(tiny)
        for key, value in values.items():
            *parents, name = key.split(".")
            target = settings
            for parent in parents:
                target = target[parent]
            target[name] = value
        return config_from_dict(settings)

    return changed
