"""Commit policy: a threshold on the trained sampler's probability that a prediction is final.

See `docs/method.md`, "Trained sampler".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, PolicyOf
from nld_train.decoding.policies.threshold import THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView
    from nld_train.decoding.policies.sampler_network import TrainedSampler

SAMPLER = Argument(
    name="sampler",
    type=str,
    default=None,
    help="the trained sampler (default: trained_sampler/ in the checkpoint)",
    metavar="DIR",
)


class SamplerPolicy:
    """Commits positions at which the sampler's probability that the prediction is final reaches a threshold.

    Always commits the position with the model's highest confidence too, which one-token-per-pass decoding would commit.
    From the same state a lower threshold commits a superset; 0 commits the whole block in one pass.

    Args:
        sampler: trained for the model that decodes.
        threshold: smallest probability.

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    def __init__(self, sampler: TrainedSampler, threshold: float) -> None:
        THRESHOLD.check(threshold)
        self.sampler = sampler.eval()
        self.threshold = threshold

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return (self.sampler.probability(view) >= self.threshold) | view.best(view.confidence, 1)


def _build(values: Mapping[str, Any], checkpoint: Path) -> PolicyOf:
    from nld_train.decoding.policies.sampler_files import load_sampler, require_sampler, sampler_directory

    directory = sampler_directory(values["sampler"], checkpoint)
    require_sampler(directory)
    return lambda engine: SamplerPolicy(load_sampler(directory, engine), values["threshold"])


DECLARATION = PolicyDeclaration(
    name="sampler",
    summary="every position to which the trained sampler gives at least the threshold, and the most confident one",
    arguments=(THRESHOLD, SAMPLER),
    build=_build,
    one_process="reads the whole embedding",
)
