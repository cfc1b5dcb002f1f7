"""The command line of `nld-plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nld_train.config.checks import at_least, positive, refuse_unless
from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.config.stage_kinds import stage_kind
from nld_train.errors import UserError
from nld_train.outside_json import is_finite_number, parse_yaml
from nld_train.planner.layouts import CHOSEN, Choices

# Short names of keys on the command line.
_SHORT = {name: f"batch.{name}" for name in ("sequence_length", "global_size", "micro_size")}
# The released shapes are planned with the paper's hyper-parameters unless an experiment is named.
_EXPERIMENTS = {name: f"experiment=paper_{name}" for name in ("3b", "8b", "14b")}
_HARDWARE = "hardware."


@dataclass(frozen=True)
class Request:
    """A requested plan.

    Attributes:
        config: the settings; their layout is replaced.
        choices: devices, and the fixed keys of the layout.
        memory: of a device, in GiB.
        rows: number of layouts that are printed.
        hardware: changes of the assumptions.
        words: overrides of the run, as `nld-train` takes them.
    """

    config: Config
    choices: Choices
    memory: float
    rows: int
    hardware: dict[str, Any]
    words: tuple[str, ...]


def read_request(arguments: Sequence[str]) -> Request:
    """Divides the words of the command line into the planner's own keys and those of the run.

    Raises:
        UserError: a word that is no key=value, a missing or impossible key, settings that do not compose.
    """
    own: dict[str, Any] = {"memory": 80, "node_size": 8, "rows": 8}
    hardware: dict[str, Any] = {}
    words: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: is no key=value; e.g. nld-plan model=8b gpus=256")
        if key in ("gpus", "memory", "node_size", "rows"):
            own[key] = _number(key, value)
        elif key.startswith(_HARDWARE):
            hardware[key.removeprefix(_HARDWARE)] = _number(key, value)
        else:
            words.append(f"{_SHORT.get(key, key)}={value}")
    _check(own)
    words = _with_experiment(words)
    config = compose_config([*words, f"run.plan_world_size={own['gpus']}", "run.dry=true"])
    _refuse_kinds(config)
    _refuse_uncounted(config)
    fixed = frozenset(key for key in CHOSEN if any(word.startswith(f"{key}=") for word in words))
    choices = Choices(own["gpus"], own["node_size"], fixed)
    return Request(_planned_device(config), choices, own["memory"], own["rows"], hardware, tuple(words))


def _refuse_kinds(config: Config) -> None:
    """Refuses stages whose steps the planner cannot count; names that do not exist are refused by `validate`."""
    for name in config.run.stages:
        kind = config.stages[name].kind if name in config.stages else None
        if kind is not None and not stage_kind(kind, f"stages.{name}.kind").planned:
            raise UserError(f"run.stages: nld-plan counts no stages of kind {kind}; name the others, e.g. [ar,joint]")


def _refuse_uncounted(config: Config) -> None:
    """Refuses settings whose memory or speed is not in the planner's counts."""
    execution, optimizer = config.execution, config.optimizer
    valid = "nld-plan counts float32 weights and moments on the device; plan with optimizer.precision_aware=false"
    refuse_unless(not optimizer.precision_aware, "optimizer.precision_aware", True, valid)
    refuse_unless(
        execution.fp8 == "none",
        "execution.fp8",
        execution.fp8,
        "nld-plan does not count FP8; plan with execution.fp8=none",
    )
    listed = f"[{','.join(execution.recompute_modules)}]"
    counted = execution.recompute_modules == ("core_attn",)
    valid = "nld-plan counts selective recomputation of attention alone; plan with [core_attn]"
    refuse_unless(counted, "execution.recompute_modules", listed, valid)


def _number(key: str, value: str) -> int | float:
    """A number as YAML and Hydra read it, e.g. 1e3."""
    try:
        number = parse_yaml(value, key)
        number = float(number) if isinstance(number, str) else number
    except ValueError:  # a UserError among them
        number = None
    if not is_finite_number(number):
        raise UserError(f"{key}={value}: must be a number")
    return int(number) if number == int(number) else number


def _check(own: dict[str, Any]) -> None:
    if "gpus" not in own:
        raise UserError("gpus: missing; give the number of devices, e.g. gpus=256")
    for key in ("gpus", "node_size", "rows"):
        if not isinstance(own[key], int):
            raise UserError(f"{key}={own[key]}: must be an integer")
        at_least(key, own[key], 1)
    positive("memory", own["memory"])


def _with_experiment(words: list[str]) -> list[str]:
    named = dict(word.split("=", 1) for word in words)
    if "experiment" in named or named.get("model") not in _EXPERIMENTS:
        return words
    experiment = _EXPERIMENTS[named["model"]]
    return [experiment, *(word for word in words if not word.startswith("model="))]


def _planned_device(config: Config) -> Config:
    """A plan is for GPUs, also when it is made on a machine without one, unless the settings say cpu."""
    if config.execution.device != "auto":
        return config
    return replace(config, execution=replace(config.execution, device="cuda"))
