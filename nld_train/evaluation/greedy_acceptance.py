"""Greedy acceptance: in each pass every prediction that is already that of one-token-per-pass decoding is committed."""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView
from nld_train.evaluation.trajectories import ONE_PER_PASS, denoise, restrict


class BlockTargets:
    """The blocks at which one-token-per-pass decoding ends: the target of each sequence's current block."""

    def __init__(self) -> None:
        self._current: dict[int, Tensor] = {}

    def begin(self, view: BlockView) -> Tensor:
        """Finds the targets of the blocks before their first pass, by uncounted forwards: bool `[d]`, which these are.

        A block of n masks takes n - 1 forwards: the first pass is the view itself.
        """
        new = view.passes == 0
        if bool(new.any()):
            end = denoise(restrict(view, new), ONE_PER_PASS)
            for row in torch.nonzero(new).flatten().tolist():
                self._current[view.sequences[row]] = end.tokens[row]
        return new

    def of(self, view: BlockView) -> Tensor:
        """int64 `[d, T]`: the targets; one from a view of another width is cut or padded to this one."""
        targets = view.tokens.clone()
        for row, sequence in enumerate(view.sequences):
            if sequence in self._current:
                size = int(view.sizes[row])
                targets[row, :size] = self._current[sequence][:size]
        return targets


class GreedyAcceptance:
    """Commits every position whose prediction equals the target; where there is none, the most confident one.

    A `CommitPolicy` that knows the target (docs/method.md, "Oracle bound"). It need not end at it: a prediction that
    equals the target in one pass can commit a position too early for others.

    Args:
        targets: of the blocks, found by another policy that sees them first; None to find them itself.
    """

    def __init__(self, targets: BlockTargets | None = None) -> None:
        self._finds = targets is None
        self._targets = BlockTargets() if targets is None else targets

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        if self._finds:
            self._targets.begin(view)
        return view.masked & (view.sampled == self._targets.of(view))
