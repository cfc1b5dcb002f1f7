"""The oracle bound: how few passes could have committed the text of one-token-per-pass decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView, CommitPolicy, chosen_positions
from nld_train.evaluation.greedy_acceptance import BlockTargets, GreedyAcceptance
from nld_train.evaluation.trajectories import ONE_PER_PASS, committed, denoise, next_view, restrict

Safety = Literal["greedy", "one-per-pass"]
GREEDY_ACCEPTANCE = "greedy acceptance"
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
        forwards: simulated forwards used so far.
        complete: whether every position is committed (a stop can end a sequence before).
        exhausted: whether a search ran out of forwards.
        certain: whether a simulation has shown that greedy acceptance reaches the target from here.
        fewest: smallest number of passes to the target; None if it was not searched for.
        policies: name of a compared policy -> its passes, and whether it ends at the target.
    """

    target: Tensor
    masks: int
    passes: int = 0
    forwards: int = 0
    complete: bool = False
    exhausted: bool = False
    certain: bool = False
    fewest: int | None = None
    policies: dict[str, tuple[int, bool]] = field(default_factory=dict)


class Oracle:
    """The bound on tokens per forward ("speed of light") as a `CommitPolicy` (docs/method.md, "Oracle bound").

    Greedy only. In each pass it considers the positions whose prediction is already that of one-token-per-pass
    decoding, the most confident first, and commits as many as are safe: such that decoding the remaining masks by
    `safety` still ends at the same block. A binary search finds the number. One position is always taken as safe. With
    it alone the block stays on the way of one-token-per-pass decoding; with more it has been simulated to the target.
    So the oracle needs at most as many passes as one-token-per-pass decoding, and its text is the same.

    Args:
        budget: maximum number of simulated forwards per block, those for the target included. A set whose simulation
            would need more counts as unsafe.
        policies: policies to compare with, beside greedy acceptance, each from the same start of every block.
        exhaustive: in blocks of at most this many masks, also search for the smallest number of passes, outside the
            budget.
        safety: how the remaining masks are decoded in a simulation: by `greedy` acceptance, as in the paper, or with
            `one-per-pass`.

    Attributes:
        blocks: the results, in the order in which the blocks were started.
    """

    def __init__(
        self,
        budget: int = FORWARDS_PER_BLOCK,
        policies: Mapping[str, CommitPolicy] | None = None,
        exhaustive: int = EXHAUSTIVE_MASKS,
        safety: Safety = "greedy",
    ) -> None:
        self.budget = budget
        self.exhaustive = exhaustive
        self.blocks: list[OracleBlock] = []
        self._targets = BlockTargets()
        greedy = GreedyAcceptance(self._targets)
        self._policies: dict[str, CommitPolicy] = {GREEDY_ACCEPTANCE: greedy, **(policies or {})}
        self._simulated: CommitPolicy = greedy if safety == "greedy" else ONE_PER_PASS
        self._safety = safety
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
        new = self._targets.begin(view)
        if not bool(new.any()):
            return
        view = restrict(view, new)
        masks, targets = view.masked.sum(1), self._targets.of(view)
        for row in torch.nonzero(new).flatten().tolist():
            # The first pass to the target is the view itself.
            block = OracleBlock(targets[row], int(masks[row]), forwards=max(0, int(masks[row]) - 1))
            self._current[view.sequences[row]] = block
            self.blocks.append(block)
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

    def _search(self, view: BlockView) -> Tensor:
        """The largest safe set of positions of each row: bool `[d, T]`."""
        blocks, targets = self._blocks(view), self._targets.of(view)
        first = chosen_positions(ONE_PER_PASS, view)
        matching = view.masked & (view.sampled == targets)
        score = view.confidence.masked_fill(~matching, float("-inf"))
        certain = torch.tensor([block.certain for block in blocks])
        # Rounding can flip a near tie, so that the way to the target is lost: the row then commits one position per
        # pass.
        lost = torch.where(certain, ~matching.any(1), (first & ~matching).any(1))
        most = torch.where(lost, 1, matching.sum(1))
        # From where greedy acceptance is known to reach the target, all matching positions are its own next step.
        least = torch.where(certain, most, 1)
        # The largest set is tried first: it often succeeds, and it is the cheapest to simulate.
        middle = most
        while bool((open_rows := least < most).any()):
            safe = self._reaches(restrict(view, open_rows), view.best(score, middle), targets, blocks)
            least = torch.where(open_rows & safe, middle, least)
            most = torch.where(open_rows & ~safe, middle - 1, most)
            middle = (least + most + 1) // 2
        for block, several in zip(blocks, (least > 1).tolist(), strict=True):
            block.certain |= several and self._safety == "greedy"
        return torch.where(lost[:, None], first, view.best(score, least))

    def _reaches(self, view: BlockView, chosen: Tensor, targets: Tensor, blocks: list[OracleBlock]) -> Tensor:
        """bool `[d]`: whether the simulation ends at the target after `chosen` is committed, within the budget."""
        tokens, masked = committed(view, chosen & view.masked)
        reaches = torch.ones(len(tokens), dtype=torch.bool)
        while True:
            reaches &= self._affordable(blocks, masked.any(1))
            masked = masked & reaches[:, None]
            if not bool(masked.any()):
                return reaches
            for block, active in zip(blocks, masked.any(1).tolist(), strict=True):
                block.forwards += active
            view = next_view(view, tokens, masked)
            step = chosen_positions(self._simulated, view)
            reaches &= ~(step & (view.sampled != targets)).any(1)
            tokens, masked = committed(view, step)

    def _affordable(self, blocks: list[OracleBlock], needed: Tensor) -> Tensor:
        """bool `[d]`: whether the budget covers one more forward; True where none is needed."""
        affordable = torch.tensor([block.forwards < self.budget for block in blocks]) | ~needed
        for block, enough in zip(blocks, affordable.tolist(), strict=True):
            block.exhausted |= not enough
        return affordable


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
