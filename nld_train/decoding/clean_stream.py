"""How the clean stream of a model was trained, as far as decoding depends on it. Exports have this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.algorithms.options import BlockStart


@dataclass(frozen=True)
class CleanStream:
    """The clean stream in the training of a model; by default that of the paper's objective.

    Attributes:
        block: tokens of the blocks that clean tokens saw whole (`diffusion.clean=block`); None where it was causal.
        ar: whether it had an AR loss. Without one there is no prediction of the token after a text.
    """

    block: int | None = None
    ar: bool = True

    @property
    def block_start(self) -> BlockStart:
        """How a block of diffusion starts unless a call says it: with an AR prediction, where these were trained."""
        return "seed" if self.ar else "masks"

    def prompt_pattern(self, width: int) -> Tensor | None:
        """Which tokens of a prompt see each other, bool `[width, width]` (query, key); None where it is causal.

        Blocks are counted from the start of the text; the last one is what the prompt has of it.
        """
        if self.block is None:
            return None
        import torch  # a model is described without it

        index = torch.arange(width)
        return index < ((index // self.block + 1) * self.block)[:, None]


PAPER = CleanStream()
