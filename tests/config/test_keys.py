"""Descriptions and ranges of the keys, and the page that is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Interval, Lt

from nld_train.config.describe import Key, keys_of, page
from nld_train.config.ranges import check_ranges, words
from nld_train.config.schema import Config
from nld_train.errors import UserError

KEYS = list(keys_of(Config))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_description(key: Key) -> None:
    assert key.description.endswith(".")


def test_keys_of_groups_lists_and_stages_are_found() -> None:
    valid = {key.name: key.valid for key in KEYS}
    assert valid["batch.micro_size"] == "an integer, at least 1"
    assert valid["validation.levels"] == "a list, each item a number, in (0, 1]"
    assert valid["checkpoint.keep_last"] == "an integer or null, at least 1"
    assert valid["stages.<name>.adapter.greedy_share"] == "a number, in [0, 1]"
    assert valid["model.rope_parameters.rope_theta"] == "a number, above 0"
    assert len(valid) == len(KEYS) > 80


def test_the_page_of_keys_is_up_to_date() -> None:
    """`python -m nld_train.config.describe > docs/keys.md` makes it."""
    assert (Path(__file__).resolve().parents[2] / "docs/keys.md").read_text(encoding="utf-8") == page()


@dataclass(frozen=True)
class _Inner:
    share: Annotated[float, Interval(ge=0, lt=1), "A number."]


@dataclass(frozen=True)
class _Settings:
    seed: Annotated[int, Ge(0), Lt(2**8), "A number."] = 1
    rate: Annotated[float, Gt(0), "A number."] = 1.0
    limit: Annotated[int | None, Ge(2), "A number."] = None
    every: Annotated[Annotated[int, Gt(0)] | None, "A number."] = None
    levels: Annotated[tuple[Annotated[float, Interval(gt=0, le=1)], ...], "Numbers."] = ()
    blend: tuple[_Inner, ...] = ()
    stages: dict[str, _Inner] | None = None
    inner: _Inner | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"seed": 256}, "seed=256: must be below 2**8 = 256"),
        ({"rate": 0.0}, "rate=0.0: must be a number above 0"),
        ({"limit": 1}, "limit=1: must be at least 2, or null"),
        ({"every": 0}, "every=0: must be above 0, or null"),
        ({"levels": (0.5, 0.0)}, "levels=[0.5, 0.0]: each must lie in (0, 1]"),
        ({"levels": (1.5,)}, "levels=[1.5]: each must lie in (0, 1]"),
        ({"blend": (_Inner(0.0), _Inner(1.0))}, "blend[1].share=1.0: must lie in [0, 1)"),
        ({"stages": {"one": _Inner(-0.5)}}, "stages.one.share=-0.5: must lie in [0, 1)"),
        ({"inner": _Inner(-0.5)}, "inner.share=-0.5: must lie in [0, 1)"),
    ],
)
def test_a_number_out_of_range_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_ranges(_Settings(**values))
    assert str(refused.value) == message


def test_numbers_in_range_are_accepted() -> None:
    inner = _Inner(0.0)
    full = _Settings(255, 0.5, 2, 1, (1.0, 0.5), (inner, inner), {"one": inner}, inner)
    for settings in (_Settings(), full):
        check_ranges(settings)


def test_an_unknown_constraint_is_a_defect() -> None:
    with pytest.raises(TypeError, match="no constraint that the configuration uses"):
        words("even")
