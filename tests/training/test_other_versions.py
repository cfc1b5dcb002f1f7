"""Checkpoints that another version of this project wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint
from training_runs import Train

from nld_train.config.compose import compose_config
from nld_train.config.load import config_to_dict
from nld_train.config.saved import read_saved_config
from nld_train.errors import UserError
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest

Command = Callable[..., tuple[int, str]]


def rewrite(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Other settings beside the weights, and a manifest that lists them."""
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(settings))
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, {})


def make_older(settings: dict[str, Any]) -> None:
    """Without keys and a group that came later, with some that are gone."""
    for group, key in (("diffusion", "level_scope"), ("data", "documents"), ("model", "head_dim"), ("run", "seed")):
        del settings[group][key]
    del settings["stages"]["joint"]["data_start"]
    del settings["evaluation"]
    settings["optimizer"]["name_of_old"] = "adamw"
    settings["diffusion"]["gone"] = 3
    settings["group_of_old"] = {"key": 1}


def test_a_run_goes_on_from_an_older_version(train: Train, whole: Path, tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(train(tmp_path, "run.max_steps=5"))
    settings = yaml.safe_load((checkpoint / "config.yaml").read_text())
    make_older(settings)
    progress = json.loads((checkpoint / "progress.json").read_text())
    (checkpoint / "progress.json").write_text(json.dumps({**progress, "noted_later": 1}))
    rewrite(checkpoint, settings)
    assert_same_run(train(tmp_path), whole)


def test_what_is_known_of_it_is_compared(train: Train, command: Command, tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(train(tmp_path, "run.max_steps=1"))
    settings = yaml.safe_load((checkpoint / "config.yaml").read_text())
    make_older(settings)
    rewrite(checkpoint, settings)
    status, errors = command(f"run.dir={tmp_path}", "diffusion.block_size=7")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: diffusion")


@pytest.mark.parametrize("content", [{"run": 3}, ["a list"], {"batch": {"global_size": "many"}}])
def test_settings_that_are_none_are_refused(train: Train, command: Command, tmp_path: Path, content: Any) -> None:
    checkpoint = newest_checkpoint(train(tmp_path, "run.max_steps=1"))
    rewrite(checkpoint, content)
    status, errors = command(f"run.dir={tmp_path}")
    assert (status, errors.count("\n")) == (2, 1), errors
    assert f"{checkpoint}/config.yaml" in errors


def test_keys_are_filled_in_at_every_depth() -> None:
    base = compose_config(["run.seed=5", "data.train=[{prefix: a, weight: 2}]"])
    settings = config_to_dict(base)
    assert read_saved_config(yaml.safe_dump(settings), base) == base
    settings["stages"]["third"] = {"tokens": 7, "schedule": {"learning_rate": 0.5}}
    settings["data"]["train"] = [{"prefix": "b"}]
    settings["logging"]["wandb"] = {"mode": "online", "color": "red"}
    found = read_saved_config(yaml.safe_dump(settings), base)
    assert found.stages["third"].tokens == 7
    assert found.stages["third"].schedule.learning_rate == 0.5
    assert found.stages["third"].schedule.decay_style == base.stages["ar"].schedule.decay_style
    assert (found.data.train[0].prefix, found.data.train[0].weight) == ("b", 2)
    assert (found.logging.wandb.mode, found.logging.wandb.project) == ("online", base.logging.wandb.project)
    with pytest.raises(UserError):
        read_saved_config("a: [", base)
