"""The oracle of diffusion decoding: in how few passes one-token-per-pass text could have been committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView, CommitPolicy, chosen_positions
from nld_train.evaluation.trajectories import ONE_PER_PASS, after, committed, follow, only

# Reference section 7.
FORWARDS_PER_BLOCK = 5000
# Every subset of so many masks is still cheap to try.
EXHAUSTIVE_MASKS = 6


@dataclass
class OracleBlock:
    """What the oracle found out about one block.

    Attributes:
        target: int64 `[T]`, the block by one-token-per-pass decoding.
        masks: positions that it had to commit.
        passes: denoising passes that the oracle has made.
        forwards: uncounted forwards that it has spent.
        complete: has it committed every position (a stop can end a row before).
        exhausted: a search ended for want of forwards.
        fewest: passes of the shortest way to the target, where it was searched for.
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
    """The bound on tokens per forward ("speed of light", reference section 7), as a `CommitPolicy`. Greedy only.

    Among the positions whose prediction is already that of one-token-per-pass decoding, the most confident first, it
    commits as many as leave the rest on its way: from there one token per pass still ends at the same block. A binary
    search finds the number; one always does, so it needs no more passes than one-token-per-pass decoding, and its text
    is the same.

    Args:
        budget: most uncounted forwards per block, those for the target included; with none left it commits what it
            knows to be safe.
        policies: policies to compare with, each from the same start of every block.
        exhaustive: look for the shortest way as well in blocks of at most so many masks, outside the budget.

    Attributes:
        blocks: what was found out, in the order in which blocks were begun.
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
        self._at_work: dict[int, OracleBlock] = {}

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`.

        Raises:
            ValueError: the sampled tokens are no argmax, as with a temperature.
        """
        if bool(((view.sampled != view.logits.argmax(-1).cpu()) & view.masked).any()):
            raise ValueError("oracle: one-token-per-pass decoding is greedy; take a temperature of 0")
        self._begin(view)
        chosen = self._search(view)
        for place, block in enumerate(self._blocks(view)):
            block.passes += 1
            block.complete = bool((chosen[place] | ~view.masked[place]).all())
        return chosen

    def _blocks(self, view: BlockView) -> list[OracleBlock]:
        return [self._at_work[sequence] for sequence in view.sequences]

    def _begin(self, view: BlockView) -> None:
        """Targets, rivals and shortest ways of the blocks that have had no pass."""
        fresh = view.passes == 0
        if not bool(fresh.any()):
            return
        view = only(view, fresh)
        end, masks = follow(view, ONE_PER_PASS), view.masked.sum(1)
        for place in torch.nonzero(fresh).flatten().tolist():
            # The first pass of the way to the target is the view itself.
            block = OracleBlock(end.tokens[place], int(masks[place]), forwards=int(masks[place]) - 1)
            self._at_work[view.sequences[place]] = block
            self.blocks.append(block)
        targets = self._targets(view)
        for name, policy in self._policies.items():
            self._compare(view, fresh, targets, name, policy)
        small = fresh & (masks <= self.exhaustive)
        if bool(small.any()):
            fewest = fewest_passes(only(view, small), targets)
            for place in torch.nonzero(small).flatten().tolist():
                self._at_work[view.sequences[place]].fewest = int(fewest[place])

    def _compare(self, view: BlockView, fresh: Tensor, targets: Tensor, name: str, policy: CommitPolicy) -> None:
        end = follow(view, policy)
        same = ((end.tokens == targets) | ~view.masked).all(1)
        for place in torch.nonzero(fresh).flatten().tolist():
            self._at_work[view.sequences[place]].policies[name] = (int(end.passes[place]), bool(same[place]))

    def _targets(self, view: BlockView) -> Tensor:
        """int64 `[d, T]`; blocks of rows that began when the batch was wider, or narrower, are cut or filled up."""
        targets = view.tokens.clone()
        for place, row in enumerate(view.sequences):
            if row in self._at_work:
                size = int(view.sizes[place])
                targets[place, :size] = self._at_work[row].target[:size]
        return targets

    def _search(self, view: BlockView) -> Tensor:
        """The largest safe choice of each row: bool `[d, T]`."""
        blocks, targets = self._blocks(view), self._targets(view)
        certain = chosen_positions(ONE_PER_PASS, view)
        matching = view.masked & (view.sampled == targets)
        score = view.confidence.masked_fill(~matching, float("-inf"))
        # Where rounding has turned a near tie, the way is followed as it goes, whatever it leads to.
        astray = (certain & ~matching).any(1)
        least = torch.ones_like(view.passes)
        most = torch.where(astray, least, matching.sum(1))
        # All at once is tried first: it often holds, and it is the cheapest to check.
        middle = most
        while bool((least < most).any()):
            chosen = view.best(score, middle)
            most = torch.where(self._affordable(view, blocks, chosen, least < most), most, least)
            open_rows = least < most
            safe = self._reaches(only(view, open_rows), chosen, targets, blocks)
            least = torch.where(open_rows & safe, middle, least)
            most = torch.where(open_rows & ~safe, middle - 1, most)
            middle = (least + most + 1) // 2
        return torch.where(astray[:, None], certain, view.best(score, least))

    def _affordable(self, view: BlockView, blocks: list[OracleBlock], chosen: Tensor, wanted: Tensor) -> Tensor:
        """bool `[d]`: can the row's check of a choice be paid for; rows that need none can."""
        cost = (view.masked & ~chosen).sum(1)
        spent = torch.tensor([block.forwards for block in blocks])
        affordable = (spent + cost <= self.budget) | ~wanted
        for block, enough in zip(blocks, affordable.tolist(), strict=True):
            block.exhausted |= not enough
        return affordable

    def _reaches(self, view: BlockView, chosen: Tensor, targets: Tensor, blocks: list[OracleBlock]) -> Tensor:
        """bool `[d]`: does one token per pass end at the target once `chosen` has been committed."""
        tokens, masked = committed(view, chosen & view.masked)
        reaches = torch.ones(len(tokens), dtype=torch.bool)
        while bool(masked.any()):
            for block, busy in zip(blocks, masked.any(1).tolist(), strict=True):
                block.forwards += busy
            view = after(view, tokens, masked)
            step = chosen_positions(ONE_PER_PASS, view)
            reaches &= ~(step & (view.sampled != targets)).any(1)
            tokens, masked = committed(view, step)
            masked = masked & reaches[:, None]
        return reaches


def fewest_passes(view: BlockView, targets: Tensor) -> Tensor:
    """The shortest way to the targets, by trying every set of positions in every pass.

    A pass may commit any masked positions whose prediction is the target's. Takes 2 ** masks - 1 uncounted forwards.

    Args:
        view: blocks at their start.
        targets: int64 `[d, T]`.

    Returns:
        int64 `[d]`, passes; 0 in rows without masks.
    """
    places = [torch.nonzero(row).flatten() for row in view.masked]
    largest = max(len(row) for row in places)
    matches = torch.zeros(len(places), 2**largest, dtype=torch.int64)
    for state in range(2**largest - 1):
        done = torch.zeros_like(view.masked)
        for row, positions in enumerate(places):
            bits = torch.arange(len(positions))
            done[row, positions] = (state >> bits & 1).bool()
        right = view.forward_uncounted(torch.where(done, targets, view.tokens)).argmax(-1).cpu() == targets
        for row, positions in enumerate(places):
            bits = torch.arange(len(positions))
            matches[row, state] = int((right[row, positions].long() << bits).sum())
    return torch.tensor([_shortest(row.tolist(), len(own)) for row, own in zip(matches, places, strict=True)])


def _shortest(matches: list[int], masks: int) -> int:
    """Passes from nothing to everything committed, where in each state any of the matching positions may be."""
    full = 2**masks - 1
    passes: list[float] = [float("inf")] * full + [0]
    for state in range(full - 1, -1, -1):
        offered = matches[state] & ~state
        choice = offered
        while choice:
            passes[state] = min(passes[state], 1 + passes[state | choice])
            choice = (choice - 1) & offered
    # One token per pass is a way, even where rounding has turned a near tie since the target was found.
    return int(min(passes[0], masks))
