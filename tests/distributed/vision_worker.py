"""One process of a group that trains a vision-language model under several layouts (started by `run_ranks`).

    vision_worker.py CASES.json RESULTS.json

A case is `{"name", "config"}`. Rank 0 writes `{name: outcome}`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from decoding_readings import Counting, readings
from parity_worker import ParityTrainee
from picture_samples import SIZES, PictureSamples
from pictures import drawn, text_with_pictures
from trainee import Record, run_cases

from nld_train.config.schema import Config
from nld_train.model.vision.picture_prompt import PicturePrompt
from nld_train.model.vision.pictures import Pictures
from nld_train.training.loop.optimizer import gather_parameters


def prompts(config: Config) -> list[Sequence[int]]:
    """With one picture, without, and with two."""
    vision = config.model.vision
    assert vision is not None
    found: list[Sequence[int]] = []
    for seed, sizes in enumerate((SIZES[2:], (), SIZES[:2])):
        ids = text_with_pictures(vision, [3, *sizes, 4], seed)
        found.append(PicturePrompt(ids, Pictures.of([drawn(size, seed) for size in sizes])) if sizes else ids)
    return found


class VisionTrainee(ParityTrainee):
    """Its samples have pictures."""

    def samples(self) -> Any:
        return PictureSamples(self.config)

    def train(self) -> Record:
        """What it first says, records of all steps, whether frozen weights are the same, and those at the end."""
        with Counting(self.chunks, self.config.model, self.rotary).decoding() as engine:
            said = readings(engine, prompts(self.config))
        before = self.frozen()
        records = list(self.steps())
        gather_parameters(self.model)
        frozen = all(torch.equal(old, new) for old, new in zip(before, self.frozen(), strict=True))
        vision = self.chunks[0].vision
        return {
            "records": records,
            "readings": said,
            "frozen": frozen,
            "trained": sum(weight.numel() for c in self.chunks for weight in c.parameters() if weight.requires_grad),
            "vision": {} if vision is None else {name: w.tolist() for name, w in vision.named_parameters()},
        }


def outcome(config: Config, device: torch.device, naive: bool) -> Record:
    """The steps of a case, and the gradient of its first one, where all weights have one."""
    del naive
    found, trainee = VisionTrainee(config, device).train(), VisionTrainee(config, device)
    return found | {"gradients": {} if trainee.frozen() else trainee.gradients()}


if __name__ == "__main__":
    run_cases(sys.argv[1], sys.argv[2], outcome)
