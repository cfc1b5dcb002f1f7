"""One process of a group that trains a vision-language model under several layouts (started by `run_ranks`).

    vision_worker.py CASES.json RESULTS.json

A case is `{"name", "config"}`. Rank 0 writes `{name: outcome}`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from parity_worker import ParityTrainee
from picture_samples import PictureSamples
from trainee import Record, run_cases

from nld_train.config.schema import Config
from nld_train.training.loop.optimizer import gather_parameters


class VisionTrainee(ParityTrainee):
    """Its samples have pictures."""

    def samples(self) -> Any:
        return PictureSamples(self.config)

    def train(self) -> Record:
        """Records of all steps, whether frozen weights are the same, and the weights at the end, on rank 0."""
        before = self.frozen()
        records = list(self.steps())
        gather_parameters(self.model)
        frozen = all(torch.equal(old, new) for old, new in zip(before, self.frozen(), strict=True))
        vision = self.chunks[0].vision
        return {
            "records": records,
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
