"""Greedy acceptance: in each pass every prediction that is already that of a known target is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView
from nld_train.evaluation.trajectories import ONE_PER_PASS, denoise, restrict


class Targets(Protocol):
    """Known blocks, by sequence."""

    def of(self, view: BlockView) -> Tensor:
        """int64 `[d, T]`: the target at each position, the view's own token where there is none."""


def fitted(view: BlockView, blocks: Mapping[int, Sequence[int]]) -> Tensor:
    """Blocks by sequence in the width of a view, for `Targets.of`: cut, or with the view's own tokens after them."""
    targets = view.tokens.clone()
    for row, sequence in enumerate(view.sequences):
        block = blocks.get(sequence, ())[: int(view.sizes[row])]
        targets[row, : len(block)] = torch.as_tensor(block, dtype=targets.dtype)
    return targets


class BlockTargets:
    """The blocks at which one-token-per-pass decoding ends: the target of each sequence's current block."""

    def __init__(self) -> None:
        self._current: dict[int, list[int]] = {}

    def begin(self, view: BlockView) -> Tensor:
        """Finds the targets of the blocks before their first pass, by uncounted forwards: bool `[d]`, which these are.

        A block of n masks takes n - 1 forwards: the first pass is the view itself.
        """
        new = view.passes == 0
        if bool(new.any()):
            end = denoise(restrict(view, new), ONE_PER_PASS)
            for row in torch.nonzero(new).flatten().tolist():
                self._current[view.sequences[row]] = end.tokens[row].tolist()
        return new

    def of(self, view: BlockView) -> Tensor:
        """See `Targets.of`; a target from a view of another width is cut or padded to this one."""
        return fitted(view, self._current)


class GreedyAcceptance:
    """Commits every position whose prediction equals the target; where there is none, the most confident one.

    A `CommitPolicy` that knows the target (docs/method.md, "Oracle bound"). It need not end at it: a prediction that
    equals the target in one pass can commit a position too early for others.

    Args:
        targets: known ones, or found by another policy that sees the blocks first; None to find them itself.
    """

    def __init__(self, targets: Targets | None = None) -> None:
        self._found: BlockTargets | None = None
        if targets is None:
            targets = self._found = BlockTargets()
        self._targets = targets

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        if self._found is not None:
            self._found.begin(view)
        return view.masked & (view.sampled == self._targets.of(view))
