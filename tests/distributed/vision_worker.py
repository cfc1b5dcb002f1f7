"""One process of a group that trains a vision-language model under several layouts (started by `run_ranks`).

    vision_worker.py CASES.json RESULTS.json

A case is `{"name", "config"}`. Rank 0 writes `{name: outcome}`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from parity_worker import ParityTrainee
from picture_samples import SIZES, PictureSamples
from pictures import drawn, text_with_pictures
from trainee import Record, run_cases

from nld_train.config.schema import Config
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.engines.megatron_engine import MegatronEngine
from nld_train.decoding.policies.threshold import Threshold
from nld_train.model.vision.picture_prompt import PicturePrompt
from nld_train.model.vision.pictures import Pictures
from nld_train.training.loop.optimizer import gather_parameters

MODES: tuple[Mode, ...] = ("ar", "diffusion", "linear")


class VisionTrainee(ParityTrainee):
    """Its samples have pictures."""

    def prepared(self, chunks: list[Any]) -> list[Any]:
        """The chunks, of which each mode has decoded prompts with pictures, one without among them."""
        vision, options = self.config.model.vision, DecodeOptions(max_new_tokens=12, block_length=4)
        assert vision is not None
        prompts: list[Any] = [text_with_pictures(vision, [6], 0)]
        for seed, sizes in enumerate(((SIZES[2],), (SIZES[0], SIZES[1]))):
            ids = text_with_pictures(vision, [3, *sizes, 4], seed)
            prompts.append(PicturePrompt(ids, Pictures.of([drawn(size, seed) for size in sizes])))
        with MegatronEngine(chunks, self.config.model, self.rotary).decoding() as engine:
            policies = {mode: Threshold(0.05) if mode == "diffusion" else None for mode in MODES}
            self.decoded = {
                mode: decode(engine, prompts, mode, options, policy, batch_size=2).token_ids
                for mode, policy in policies.items()
            }
        return super().prepared(chunks)

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
            "decoded": self.decoded,
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
