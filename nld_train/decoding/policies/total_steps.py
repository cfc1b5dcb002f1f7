"""Commit policy: a fixed number of denoising passes per text, for `generate(steps=..)` of the exported package.

It needs the lengths of the prompts, so command lines do not offer it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.decoding.policies.even_steps import even_share

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView


@dataclass(frozen=True)
class TotalSteps:
    """Spreads a text's masks evenly over `steps` passes: blocks get equal numbers, the first ones the remainder.

    Attributes:
        steps: passes for a whole text, at least one for each block.
        blocks: number of a text's blocks that have masks.
        block_length: tokens of a block; only the last of a text may be shorter.
        prompt_lengths: tokens of each prompt of the batch.

    Raises:
        ValueError: fewer passes than blocks.
    """

    steps: int
    blocks: int
    block_length: int
    prompt_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.steps < self.blocks:
            raise ValueError(f"steps: {self.steps} is fewer than the {self.blocks} blocks, which take one pass each")

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        prompts = view.starts.new_tensor([self.prompt_lengths[sequence] for sequence in view.sequences])
        block = (view.starts - prompts) // self.block_length
        return even_share(view, self.steps // self.blocks + (block < self.steps % self.blocks).long())
