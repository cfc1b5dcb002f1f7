"""Impossible settings of evaluation are refused by name."""

from __future__ import annotations

import pytest
from runs_that_decode import config_of

from nld_train.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.every=-1", "evaluation.every=-1: must be at least 0"),
        ("evaluation.prompts=0", "evaluation.prompts=0: must be at least 1"),
        ("evaluation.block_length=0", "evaluation.block_length=0: must be at least 1"),
        ("evaluation.threshold=1.5", "evaluation.threshold=1.5: must lie in [0, 1]"),
        ("evaluation.modes=[linear]", "evaluation.modes=[linear]: must name ar"),
        ("evaluation.modes=[ar,ar]", "evaluation.modes=[ar,ar]: must name each mode only once"),
        ("evaluation.modes=[ar,telepathy]", "evaluation.modes[1]='telepathy'"),
        (
            "evaluation.max_new_tokens=1000",
            "evaluation.max_new_tokens=1000: with prompt_tokens=128 must be at most 896",
        ),
        ("data.validation=[]", "data.validation=[]"),
    ],
)
def test_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config_of("validation.every=0", override)
    assert message in str(error.value)


def test_what_is_never_decoded_needs_no_room() -> None:
    config_of("evaluation.every=0", "evaluation.max_new_tokens=1000")
    config_of("validation.every=0", "evaluation.every=0", "data.validation=[]")
