"""Texts and conversations go into the stages that are trained on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_run_template import write_description
from tiny_runs import composed

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.sample_sets import require_kinds_of_data
from nld_train.errors import UserError


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, SourceConfig]:
    """A set of texts and one of conversations."""
    return {
        "texts": write_description(tmp_path / "texts", None),
        "chat": write_description(tmp_path / "chat", "{{ messages }}"),
    }


def run_of(stages: str, train: SourceConfig, validation: SourceConfig, tuned: SourceConfig | None) -> Config:
    """A run with its data, and those of stage `sft`."""
    config = composed("stages=[quickstart,sft]", f"run.stages=[{stages}]")
    own = None if tuned is None else (tuned,)
    stage = replace(config.stages["sft"], train=own, validation=own)
    data = replace(config.data, train=(train,), validation=(validation,))
    return replace(config, data=data, stages={**config.stages, "sft": stage})


@pytest.mark.parametrize(
    ("stages", "train", "validation", "tuned", "message"),
    [
        ("ar,joint", "texts", "texts", None, None),
        ("ar,joint,sft", "texts", "texts", "chat", None),
        ("sft", "chat", "chat", None, None),
        (
            "joint",
            "chat",
            "texts",
            None,
            r"^data\.train: .*chat is a set of conversations, not for stages\.joint of kind ",
        ),
        (
            "ar",
            "texts",
            "chat",
            None,
            r"^data\.validation: .*chat is a set of conversations, not for stages\.ar of kind a",
        ),
        (
            "sft",
            "texts",
            "texts",
            "texts",
            r"^stages\.sft\.train: .*texts is a set of texts, not for stages\.sft of kind",
        ),
        (
            "ar,sft",
            "texts",
            "texts",
            None,
            r"^data\.train: .*texts is a set of texts, .* name them in stages\.sft\.train$",
        ),
        ("sft", "chat", "texts", None, r"^data\.validation: .*texts is a set of texts, .* in stages\.sft\.validation$"),
    ],
)
def test_a_set_of_the_other_kind_is_refused(
    sources: dict[str, SourceConfig], stages: str, train: str, validation: str, tuned: str | None, message: str | None
) -> None:
    config = run_of(stages, sources[train], sources[validation], None if tuned is None else sources[tuned])
    if message is None:
        require_kinds_of_data(config)
        return
    with pytest.raises(UserError, match=message):
        require_kinds_of_data(config)


def test_conversations_keep_their_borders_in_every_kind_of_stage(sources: dict[str, SourceConfig]) -> None:
    config = composed("stages=drafter", "data.documents=ignore")
    config = replace(config, data=replace(config.data, train=(sources["chat"],), validation=(sources["texts"],)))
    with pytest.raises(UserError, match=r"^data\.documents=ignore: must be isolate, since data\.train names conv"):
        require_kinds_of_data(config)
