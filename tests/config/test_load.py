"""From YAML to dataclasses: what is taken, what is refused, and the way back."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from nld_train.config.compose import compose_config
from nld_train.config.load import config_from_dict, config_from_yaml, config_to_dict, config_to_yaml, load_config
from nld_train.config.schema import Config
from nld_train.errors import UserError


def test_whole_floats_are_integers_and_integers_are_floats(change: Any) -> None:
    config = change({"stages.ar.tokens": 1e12, "stages.joint.alpha": 1})
    assert config.stages["ar"].tokens == 10**12
    assert type(config.stages["ar"].tokens) is int
    assert type(config.stages["joint"].alpha) is float


@pytest.mark.parametrize("value", [True, False, "build"])
def test_dry_takes_three_values(change: Any, value: Any) -> None:
    assert change({"run.dry": value}).run.dry is value


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("batch.micro_size", 2.5, "an integer"),
        ("batch.micro_size", "2", "an integer"),
        ("batch.micro_size", True, "an integer"),
        ("batch.micro_size", None, "an integer"),
        ("stages.joint.alpha", "big", "a number"),
        ("stages.joint.alpha", True, "a number"),
        ("stages.joint.alpha", float("nan"), "a number"),
        ("stages.joint.tokens", float("inf"), "an integer"),
        ("stages.joint.averaging", "mean", "global, contributing, masked, sequence"),
        ("stages.joint.schedule", 3, "learning_rate"),
        ("stages.joint.train", "corpus", "a list"),
        ("run.stages", "ar", "a list"),
        ("run.stages", [1], "text"),
        ("run.dry", "maybe", "true or false or build"),
        ("run.dry", 1, "true or false or build"),
        ("run.name", 7, "put it in quotes"),
        ("run.max_steps", "all", "an integer or null"),
        ("parallel.sequence", 1, "true or false"),
        ("validation.levels", [0.5, "x"], "a number"),
        ("stages", [], "names"),
        ("logging.wandb.mode", "on", "offline, online, disabled"),
        ("batch", None, "global_size"),
    ],
)
def test_wrong_types_are_refused(change: Any, key: str, value: Any, wanted: str) -> None:
    with pytest.raises(UserError) as refused:
        change({key: value})
    message = str(refused.value)
    assert message.startswith(key)
    assert wanted in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "close"),
    [("batch.micro_sise", "micro_size"), ("stages.ar.schedule.learning_rat", "learning_rate"), ("bacth", "batch")],
)
def test_unknown_keys_are_refused_with_the_nearest_name(change: Any, key: str, close: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: unknown key; did you mean '{close}'"):
        change({key: 1})


def test_unknown_key_in_a_list_names_its_place(change: Any) -> None:
    with pytest.raises(UserError, match=r"^data.train\[1\].wait: unknown key; did you mean 'weight'"):
        change({"data.train": [{"prefix": "a", "weight": 1}, {"prefix": "b", "wait": 1}]})


def test_missing_key_is_refused(tiny: Config) -> None:
    settings = config_to_dict(tiny)
    del settings["model"]["rope_parameters"]["rope_theta"]
    with pytest.raises(UserError, match=r"^model.rope_parameters.rope_theta: missing; must be a number"):
        config_from_dict(settings)


def test_all_missing_keys_of_a_new_stage_are_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        compose_config(["+stages.third={kind: joint, schedule: {learning_rate: 1e-3}}"])
    message = str(refused.value)
    assert message.startswith("7 keys are missing: stages.third.tokens (an integer), stages.third.alpha (a number), ")
    for name in ("averaging (one of global,", "schedule.final_learning_rate (a", "schedule.decay_style (one of"):
        assert f"stages.third.{name}" in message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["stages.third.tokens=5", "stages.third={kind: joint}"])
def test_a_stage_that_is_not_there_is_told_how_to_add_it(override: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_config([override])
    message = str(refused.value)
    assert message.startswith("stages.third: unknown key; valid under stages: ar, joint; add a new one with ")
    added = message.partition("'+stages.third={")[2]
    for name in ("kind: ...", "tokens: ...", "alpha: ...", "averaging: ...", "schedule: {learning_rate: ..."):
        assert name in added


def test_a_stage_is_added_with_what_the_message_names() -> None:
    """What it shares with another stage is taken from there."""
    whole = "kind: joint, tokens: 2e6, alpha: 0.5, averaging: sequence, schedule: ${stages.joint.schedule}"
    config = compose_config([f"+stages.third={{{whole}}}"])
    assert config.run.stages == ("ar", "joint", "third")
    third, joint = config.stages["third"], config.stages["joint"]
    assert (third.tokens, third.alpha, third.schedule) == (2_000_000, 0.5, joint.schedule)
    assert (third.train, third.data_start) == (None, "continue")
    assert compose_config(["+stages.copy=${stages.joint}"]).stages["copy"] == joint


def test_yaml_round_trip_gives_an_equal_config(change: Any) -> None:
    config = change(
        {
            "optimizer.epsilon": 1e-8,
            "run.name": "ünïcode: ${not.an.interpolation}",
            "stages.joint.train": [{"prefix": "a", "weight": 0.1}],
            "run.dry": "build",
            "parallel.virtual_pipeline": 2,
        }
    )
    text = config_to_yaml(config)
    assert config_from_yaml(text) == config
    assert config_to_yaml(config_from_yaml(text)) == text


@pytest.mark.parametrize("text", ["", "- a", "run: [", "run: {}"])
def test_other_yaml_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refused:
        config_from_yaml(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["${no.such.key}", "???", "${oc.env:NO_SUCH_VARIABLE}"])
def test_interpolation_that_leads_nowhere_is_refused(tiny: Config, value: str) -> None:
    composed = OmegaConf.create(config_to_dict(tiny))
    OmegaConf.update(composed, "init.checkpoint", value)
    with pytest.raises(UserError, match=r"^init.checkpoint: "):
        load_config(composed)


@pytest.mark.parametrize(
    ("override", "pieces"),
    [
        ("batch.micro_sise=1", ["batch.micro_sise", "micro_size"]),
        ("stages.jont.alpha=1", ["stages.jont", "'joint'"]),
        ("+batch.new=1", ["batch.new", "micro_size"]),
        ("model=9b", ["model=9b", "14b, 3b, 8b, 8b_vision, tiny, tiny_vision"]),
        ("experiment=paper", ["experiment=paper", "paper_8b"]),
        ("modle=8b", ["modle", "'model'"]),
        ("run.stages=[ar", ["run.stages=[ar"]),
        ("init.checkpoint=a=b", ["init.checkpoint=a=b", "quote"]),
    ],
)
def test_overrides_that_cannot_be_composed_are_refused(override: str, pieces: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        compose_config([override])
    message = str(refused.value)
    assert "\n" not in message
    assert all(piece in message for piece in pieces), message
