"""A run that was trained, for tests that need more than an import."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of both stages over prepared text."""
    from trained_runs import train

    return train(tmp_path_factory.mktemp("trained"))
