"""The oracle bound: how few passes could have committed the text of one-token-per-pass decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView, CommitPolicy, chosen_positions
from nld_train.evaluation.trajectories import ONE_PER_PASS, committed, denoise, next_view, restrict

# docs/method.md, "Oracle bound".
FORWARDS_PER_BLOCK = 5000
# 2 ** 6 - 1 forwards are enough to try every subset of this many masks.
EXHAUSTIVE_MASKS = 6


@dataclass
class OracleBlock:
    """The oracle's result for one block.

    Attributes:
        target: int64 `[T]`, the block by one-token-per-pass decoding.
        masks: positions that it had to commit.
        passes: denoising passes of the oracle so far.
        forwards: uncounted forwards used so far.
        complete: whether every position is committed (a stop can end a sequence before).
        exhausted: whether a search ran out of forwards.
        fewest: smallest number of passes to the target; None if it was not searched for.
        policies: name of a compared policy -> its passes, and whether it ends at the target.
    """

    target: Tensor
    masks: int
    passes: int = 0
    forwards: int = 0
    complete: bool = False
    exhausted: bool = False
    fewest: int | None = None
    policies: dict[str, tuple[int, bool]] = field(default_factory=dict)


class Oracle:
    """The bound on tokens per forward ("speed of light") as a `CommitPolicy` (docs/method.md, "Oracle bound").

    Greedy only. In each pass it considers the positions whose prediction is already that of one-token-per-pass
    decoding, the most confident first, and commits as many as possible such that one-token-per-pass decoding of the
    remaining masks still ends at the same block. A binary search finds the number. Committing one position is always
    possible, so it needs at most as many passes as one-token-per-pass decoding, and its text is the same.

    Args:
        budget: maximum number of uncounted forwards per block, those for the target included; when they are used up it
            commits the largest number that was verified.
        policies: policies to compare with, each from the same start of every block.
        exhaustive: in blocks of at most this many masks, also search for the smallest number of passes, outside the
            budget.

    Attributes:
        blocks: the results, in the order in which the blocks were started.
    """

    def __init__(
        self,
        budget: int = FORWARDS_PER_BLOCK,
        policies: Mapping[str, CommitPolicy] | None = None,
        exhaustive: int = EXHAUSTIVE_MASKS,
    ) -> None:
        self.budget = budget
        self.exhaustive = exhaustive
        self.blocks: list[OracleBlock] = []
        self._policies = policies or {}
        # The current block of each sequence.
        self._current: dict[int, OracleBlock] = {}

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`.

        Raises:
            ValueError: the sampled tokens are not the argmax, as with a temperature.
        """
        if bool(((view.sampled != view.logits.argmax(-1).cpu()) & view.masked).any()):
            raise ValueError("oracle: one-token-per-pass decoding is greedy; take a temperature of 0")
        self._begin(view)
        chosen = self._search(view)
        for row, block in enumerate(self._blocks(view)):
            block.passes += 1
            block.complete = bool((chosen[row] | ~view.masked[row]).all())
        return chosen

    def _blocks(self, view: BlockView) -> list[OracleBlock]:
        return [self._current[sequence] for sequence in view.sequences]

    def _begin(self, view: BlockView) -> None:
        """For blocks before their first pass: targets, compared policies and smallest numbers of passes."""
        new = view.passes == 0
        if not bool(new.any()):
            return
        view = restrict(view, new)
        end, masks = denoise(view, ONE_PER_PASS), view.masked.sum(1)
        for row in torch.nonzero(new).flatten().tolist():
            # The first pass to the target is the view itself.
            block = OracleBlock(end.tokens[row], int(masks[row]), forwards=int(masks[row]) - 1)
            self._current[view.sequences[row]] = block
            self.blocks.append(block)
        targets = self._targets(view)
        for name, policy in self._policies.items():
            self._compare(view, new, targets, name, policy)
        small = new & (masks <= self.exhaustive)
        if bool(small.any()):
            fewest = fewest_passes(restrict(view, small), targets)
            for row in torch.nonzero(small).flatten().tolist():
                self._current[view.sequences[row]].fewest = int(fewest[row])

    def _compare(self, view: BlockView, new: Tensor, targets: Tensor, name: str, policy: CommitPolicy) -> None:
        end = denoise(view, policy)
        same = ((end.tokens == targets) | ~view.masked).all(1)
        for row in torch.nonzero(new).flatten().tolist():
            self._current[view.sequences[row]].policies[name] = (int(end.passes[row]), bool(same[row]))

    def _targets(self, view: BlockView) -> Tensor:
        """int64 `[d, T]`: the targets; one from a view of another width is cut or padded to this one."""
        targets = view.tokens.clone()
        for row, sequence in enumerate(view.sequences):
            if sequence in self._current:
                size = int(view.sizes[row])
                targets[row, :size] = self._current[sequence].target[:size]
        return targets

    def _search(self, view: BlockView) -> Tensor:
        """The largest set of positions of each row that still leads to its target: bool `[d, T]`."""
        blocks, targets = self._blocks(view), self._targets(view)
        certain = chosen_positions(ONE_PER_PASS, view)
        matching = view.masked & (view.sampled == targets)
        score = view.confidence.masked_fill(~matching, float("-inf"))
        # Rounding can flip a near tie, so that one-token-per-pass decoding no longer ends at the target: the row then
        # commits one position per pass.
        diverged = (certain & ~matching).any(1)
        least = torch.ones_like(view.passes)
        most = torch.where(diverged, least, matching.sum(1))
        # The largest set is tried first: it often succeeds, and it is the cheapest to check.
        middle = most
        while bool((least < most).any()):
            chosen = view.best(score, middle)
            most = torch.where(self._affordable(view, blocks, chosen, least < most), most, least)
            open_rows = least < most
            safe = self._reaches(restrict(view, open_rows), chosen, targets, blocks)
            least = torch.where(open_rows & safe, middle, least)
            most = torch.where(open_rows & ~safe, middle - 1, most)
            middle = (least + most + 1) // 2
        return torch.where(diverged[:, None], certain, view.best(score, least))

    def _affordable(self, view: BlockView, blocks: list[OracleBlock], chosen: Tensor, needed: Tensor) -> Tensor:
        """bool `[d]`: whether the budget covers the check of a row's set; True if no check is needed."""
        cost = (view.masked & ~chosen).sum(1)
        spent = torch.tensor([block.forwards for block in blocks])
        affordable = (spent + cost <= self.budget) | ~needed
        for block, enough in zip(blocks, affordable.tolist(), strict=True):
            block.exhausted |= not enough
        return affordable

    def _reaches(self, view: BlockView, chosen: Tensor, targets: Tensor, blocks: list[OracleBlock]) -> Tensor:
        """bool `[d]`: whether one token per pass ends at the target after `chosen` has been committed."""
        tokens, masked = committed(view, chosen & view.masked)
        reaches = torch.ones(len(tokens), dtype=torch.bool)
        while bool(masked.any()):
            for block, active in zip(blocks, masked.any(1).tolist(), strict=True):
                block.forwards += active
            view = next_view(view, tokens, masked)
            step = chosen_positions(ONE_PER_PASS, view)
            reaches &= ~(step & (view.sampled != targets)).any(1)
            tokens, masked = committed(view, step)
            masked = masked & reaches[:, None]
        return reaches


def fewest_passes(view: BlockView, targets: Tensor) -> Tensor:
    """The smallest number of passes to the targets, by trying every set of positions in every pass.

    A pass may commit any masked positions whose prediction is the target's. Takes 2 ** masks - 1 uncounted forwards.

    Args:
        view: blocks after their first denoising forward.
        targets: int64 `[d, T]`.

    Returns:
        int64 `[d]`, passes; 0 in rows without masks.
    """
    masked = [torch.nonzero(row).flatten() for row in view.masked]
    largest = max(len(positions) for positions in masked)
    matches = torch.zeros(len(masked), 2**largest, dtype=torch.int64)
    for state in range(2**largest - 1):
        done = torch.zeros_like(view.masked)
        for row, positions in enumerate(masked):
            bits = torch.arange(len(positions))
            done[row, positions] = (state >> bits & 1).bool()
        right = view.forward_uncounted(torch.where(done, targets, view.tokens)).argmax(-1).cpu() == targets
        for row, positions in enumerate(masked):
            bits = torch.arange(len(positions))
            matches[row, state] = int((right[row, positions].long() << bits).sum())
    return torch.tensor([_shortest(row.tolist(), len(own)) for row, own in zip(matches, masked, strict=True)])


def _shortest(matches: list[int], masks: int) -> int:
    """Passes from no to all positions committed; in each state any of its matching positions may be committed."""
    full = 2**masks - 1
    passes: list[float] = [float("inf")] * full + [0]
    for state in range(full - 1, -1, -1):
        allowed = matches[state] & ~state
        choice = allowed
        while choice:
            passes[state] = min(passes[state], 1 + passes[state | choice])
            choice = (choice - 1) & allowed
    # One token per pass always ends, even if rounding has flipped a near tie since the target was found.
    return int(min(passes[0], masks))
