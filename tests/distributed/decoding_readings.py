"""What a model says in every mode: the same under every layout, whatever its rows have left to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from nld_train.decoding import DecodeOptions, Step, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.engines.megatron_engine import MegatronEngine

# Of unequal lengths, one of them a single token.
PROMPTS = [[7, 9, 11, 13, 15], [40], [8, 21, 30, 30, 12, 61, 5, 44, 19]]
MODES = ("ar", "diffusion", "linear", "quadratic")
SETTINGS = {
    "greedy": DecodeOptions(11, block_length=4, stop_tokens=(33, 50)),
    "sampled": DecodeOptions(11, block_length=3, temperature=0.9, top_k=30, top_p=0.95, seeds=5, stop_tokens=(33, 50)),
}
# All sequences at once; or the last prompt waits until a slot is free.
SLOTS = {"greedy": None, "sampled": 2}


class Counting(MegatronEngine):
    """Counts the forwards that were really run."""

    forwards = 0

    def forward(self, step: Step) -> Tensor:
        """Counted."""
        self.forwards += 1
        return super().forward(step)


def readings(engine: Counting, prompts: Sequence[Sequence[int]] = PROMPTS) -> dict[str, dict[str, Any]]:
    """The whole result of each way to decode, and how many forwards the engine saw."""
    found = {}
    for name, options in SETTINGS.items():
        for mode in MODES:
            before = engine.forwards
            policy = Threshold(0.2) if mode == "diffusion" else None
            result = asdict(decode(engine, prompts, mode, options, policy, batch_size=SLOTS[name]))
            del result["seconds"]
            found[f"{name} {mode}"] = {**result, "counted": engine.forwards - before}
    return found
