"""What decoding has to know of the stage that trained a model. No torch here."""

from __future__ import annotations

from nld_train.config.schema import Config, StageConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.decoding.clean_stream import PAPER, CleanStream


def clean_stream_of(config: Config, stage: StageConfig) -> CleanStream:
    """The clean stream of a stage that trains the model: causal, with an AR loss, where there is no noisy stream."""
    if not kind_of(stage).noisy_stream:
        return PAPER
    diffusion = config.diffusion
    return CleanStream(diffusion.block_size if diffusion.clean == "block" else None, stage.ar_weight > 0)
