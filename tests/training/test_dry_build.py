"""The plan's counted parameters are those of the model that is really built."""

from __future__ import annotations

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


def test_a_padded_vocabulary_is_counted_too() -> None:
    config = compose_config(["parallel.tensor=2", "model.vocab_size=261", "run.dry=build", "run.plan_world_size=2"])
    (built,) = built_parameter_counts(config, 2)
    assert (built,) == rank_parameter_counts(config)
    even = compose_config(["parallel.tensor=2", "model.vocab_size=262", "run.dry=build", "run.plan_world_size=2"])
    assert built == built_parameter_counts(even, 2)[0]
