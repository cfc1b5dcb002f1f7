"""The pretended device itself."""

from __future__ import annotations

import pytest
from device_rules import names
from rehearsals import rehearsed


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    found: dict[str, str] = rehearsed("rules")
    return found


@pytest.mark.parametrize("rule", names())
def test_rules(rule: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[rule], outcomes[rule]
