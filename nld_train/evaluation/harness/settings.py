"""Settings of an evaluation that apply to all its tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from nld_train.decoding.algorithms.options import BlockStart, DecodeOptions, Graphs, Mode
from nld_train.decoding.clean_stream import PAPER, CleanStream
from nld_train.decoding.mode_options import refuse_unread
from nld_train.decoding.policies.registry import PolicySettings

Likelihood = Literal["ar", "bound"]
# Of the bound.
_SAMPLES = 32


@dataclass(frozen=True)
class EvaluationSettings:
    """The decode mode with its options, and the size of batches.

    Attributes:
        mode: the decode mode of texts. Likelihoods are exact in `ar`, `linear` and `quadratic`, which have the same
            distribution, and by default lower bounds in `diffusion`.
        batch_size: sequences that run together.
        block_length: tokens per block of diffusion, linear and the bound, drafts per cycle of quadratic; None for the
            checkpoint's own.
        policy: commit policy of diffusion decoding.
        likelihood: of `diffusion`: `bound`, or `ar`, the exact one of the other modes; None for `bound`.
        block_start: what a block of diffusion decoding begins with (see `DecodeOptions`); None for `seed`,
            or `masks` where there was no AR loss in training.
        samples: maximum number of noise samples per block of the bound; None for 32.
        max_new_tokens: maximum number of new tokens of a text, in place of each task's.
        cuda_graphs: whether cycles that decode run as CUDA graphs (see `DecodeOptions`).
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
    block_length: int | None = None
    policy: PolicySettings = field(default_factory=PolicySettings)
    likelihood: Likelihood | None = None
    samples: int | None = None
    max_new_tokens: int | None = None
    block_start: BlockStart | None = None
    cuda_graphs: Graphs = "auto"
    adapter: bool = False
    adapter_directory: str | None = None
    seed: int = 0
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("samples", 2), ("seed", 0)):
            if (value := getattr(self, name)) is not None and value < lowest:
                raise ValueError(f"{name}: {value} is not {lowest} or more")
        if self.likelihood not in (None, *get_args(Likelihood)):
            raise ValueError(f"likelihood: {self.likelihood!r} is not one of {', '.join(get_args(Likelihood))}")
        if self.likelihood == "ar" and self.samples is not None:
            raise ValueError("samples: likelihoods of AR are exact, and nothing is sampled")
        # Checked by the decoder's own classes.
        most = 1 if self.max_new_tokens is None else self.max_new_tokens
        length = 1 if self.block_length is None else self.block_length
        named = {name: getattr(self, name) for name in ("adapter", "block_start", "cuda_graphs")}
        DecodeOptions(most, block_length=length, **named)

    @classmethod
    def of(cls, **settings: Any) -> EvaluationSettings:
        """From keywords, among them `policy`, the name of a commit policy, and any of its arguments.

        Raises:
            ValueError: a value out of its range.
            UserError: an option that the mode does not read.
        """
        policy = PolicySettings.of(settings)
        others = {name: value for name, value in settings.items() if name not in policy.record()}
        found = cls(policy=policy, **others)
        refuse_unread(settings, [found.mode])
        return found

    def record(self) -> dict[str, Any]:
        """The settings as keywords, the inverse of `of`."""
        others = {name: value for name, value in asdict(self).items() if name != "policy"}
        return others | self.policy.record()

    @property
    def bounds(self) -> bool:
        """Whether likelihoods are bounds."""
        return self.mode == "diffusion" and self.likelihood != "ar"

    @property
    def noise_samples(self) -> int:
        """Maximum number of noise samples per block of the bound."""
        return _SAMPLES if self.samples is None else self.samples

    def resolved(self, block_length: int, clean_stream: CleanStream = PAPER) -> dict[str, Any]:
        """The settings that the mode reads by name, with the values of those that were not given.

        Args:
            block_length: of the checkpoint.
            clean_stream: how it was trained to see a text.
        """
        found = {name: value for name, value in self.record().items() if name not in self.policy.record()}
        if self.mode == "ar":
            del found["block_length"]
        elif self.block_length is None:
            found["block_length"] = block_length
        if self.mode == "diffusion":
            found |= {"likelihood": self.likelihood or "bound", "policy": self.policy.name, **self.policy.arguments}
            found["block_start"] = self.block_start or clean_stream.block_start
        else:
            del found["likelihood"], found["block_start"]
        if not self.bounds:
            del found["samples"]
            return found
        return found | {"samples": self.noise_samples}
