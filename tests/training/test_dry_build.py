"""The plan's counted parameters are those of the model that is really built."""

from __future__ import annotations

import sys

import pytest

from nld_train.config.compose import compose_config
from nld_train.config.counts import rank_parameter_counts
from nld_train.config.validate import validate
from nld_train.model.dry_build import built_parameter_counts


@pytest.mark.parametrize(
    ("experiment", "tensor", "pipeline", "virtual"),
    [
        ("paper_3b", 1, 1, "null"),
        ("paper_3b", 2, 2, "null"),
        ("paper_3b", 4, 13, "2"),
        ("paper_8b", 4, 1, "null"),
        ("paper_8b", 8, 2, "null"),
        ("paper_8b", 1, 17, "2"),
        ("paper_14b", 8, 1, "null"),
        ("paper_14b", 4, 4, "5"),
        ("paper_14b", 2, 8, "null"),
    ],
)
def test_counted_and_built_parameters_agree(experiment: str, tensor: int, pipeline: int, virtual: str) -> None:
    world_size = 2 * tensor * pipeline
    config = compose_config(
        [
            f"experiment={experiment}",
            "run.dry=build",
            f"run.plan_world_size={world_size}",
            f"parallel.tensor={tensor}",
            f"parallel.sequence={str(tensor > 1).lower()}",
            f"parallel.pipeline={pipeline}",
            f"parallel.virtual_pipeline={virtual}",
            f"batch.global_size={8 * pipeline}",
            "batch.micro_size=1",
            "validation.every=0",
        ]
    )
    validate(config, world_size)
    assert built_parameter_counts(config, world_size) == rank_parameter_counts(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["execution.fp8=hybrid"],
        ["parallel.overlap_tensor=true"],
        ["execution.layers=transformer_engine"],
        ["execution.layers=local", "execution.compile=reduce-overhead"],
    ],
)
def test_what_runs_on_gpus_only_is_built_without_one(overrides: list[str]) -> None:
    """It changes how layers compute, not what they hold."""
    words = [
        "experiment=paper_3b",
        "run.dry=build",
        "run.plan_world_size=2",
        "batch.global_size=8",
        "batch.micro_size=1",
    ]
    layout = ["parallel.tensor=2", "parallel.sequence=true", "run.stages=[joint]", "validation.every=0"]
    config = compose_config([*words, *layout, "evaluation.every=0", *overrides])
    validate(config, 2)
    assert built_parameter_counts(config, 2) == rank_parameter_counts(config)


def test_only_the_first_process_builds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """torchrun starts many, and all would print the same table."""
    from nld_train.commands.train import main

    monkeypatch.setattr("sys.argv", ["nld-train", "run.dry=build"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "nld_train.model.dry_build", None)  # its import would fail
    assert main() == 0
    assert capfd.readouterr().out == ""


def test_a_padded_vocabulary_is_counted_too() -> None:
    config = compose_config(["parallel.tensor=2", "model.vocab_size=261", "run.dry=build", "run.plan_world_size=2"])
    (built,) = built_parameter_counts(config, 2)
    assert (built,) == rank_parameter_counts(config)
    even = compose_config(["parallel.tensor=2", "model.vocab_size=262", "run.dry=build", "run.plan_world_size=2"])
    assert built == built_parameter_counts(even, 2)[0]
