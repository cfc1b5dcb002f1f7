"""Settings of an evaluation that apply to all its tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.policies.registry import PolicySettings
from nld_train.evaluation.harness.requests import GenerationSettings


@dataclass(frozen=True)
class EvaluationSettings:
    """The decode mode with its options, and the size of batches.

    Attributes:
        mode: the decode mode of texts. Likelihoods are exact in `ar`, `linear` and `quadratic`, which have the same
            distribution, and lower bounds in `diffusion`.
        batch_size: sequences that run together.
        block_length: tokens per block of diffusion, linear and the bound, drafts per cycle of quadratic; the
            `block_size` of a training configuration.
        policy: commit policy of diffusion decoding.
        samples: maximum number of noise samples per block of the bound.
        max_new_tokens: maximum number of new tokens of a text, in place of each task's.
        adapter: draft with the drafter adapter (linear).
        adapter_directory: directory of an adapter to use instead of the checkpoint's.
        seed: of the bound's noise and of sampled texts.
        tensor: tensor-parallel ranks.
        pipeline: pipeline stages.

    Raises:
        ValueError: a value out of its range.
    """

    mode: Mode = "ar"
    batch_size: int = 16
    block_length: int = 32
    policy: PolicySettings = field(default_factory=PolicySettings)
    samples: int = 32
    max_new_tokens: int | None = None
    adapter: bool = False
    adapter_directory: str | None = None
    seed: int = 0
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("samples", 2), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: {getattr(self, name)} is not {lowest} or more")
        if self.adapter and self.mode != "linear":
            raise ValueError(f"adapter: mode {self.mode!r} does not draft with one; only linear does")
        # Checked by the decoder's own classes.
        most = 1 if self.max_new_tokens is None else self.max_new_tokens
        DecodeOptions(max_new_tokens=most, block_length=self.block_length, adapter=self.adapter)

    @classmethod
    def of(cls, **settings: Any) -> EvaluationSettings:
        """From keywords, among them `policy`, the name of a commit policy, and any of its arguments.

        Raises:
            ValueError: a value out of its range.
        """
        policy = PolicySettings.of(settings)
        others = {name: value for name, value in settings.items() if name not in policy.record()}
        return cls(policy=policy, **others)

    def record(self) -> dict[str, Any]:
        """The settings as keywords, the inverse of `of`."""
        others = {name: value for name, value in asdict(self).items() if name != "policy"}
        return others | self.policy.record()

    @property
    def bounds(self) -> bool:
        """Whether likelihoods are bounds."""
        return self.mode == "diffusion"

    def most_new_tokens(self, settings: GenerationSettings) -> int:
        """Maximum number of new tokens of a text: that of the evaluation, else the task's."""
        return settings.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
