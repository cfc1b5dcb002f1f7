"""What a denoising pass commits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from naive_decoding import Reader
from tiny_models import CountingEngine
from tiny_shape import SHAPE
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import (
    BlockView,
    DecodeOptions,
    DecodeResult,
    Entropy,
    EvenSteps,
    FixedNumber,
    Threshold,
    decode,
)
from nld_train.decoding.policies.commit import chosen_positions
from nld_train.decoding.policies.total_steps import TotalSteps

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17]]


@dataclass
class Recorder:
    """Commits one position per pass and keeps what it saw."""

    views: list[BlockView] = field(default_factory=list)

    def choose(self, view: BlockView) -> Tensor:
        self.views.append(view)
        return FixedNumber(1).choose(view)


def recorded(model: NemotronLabsDiffusionModel) -> list[BlockView]:
    recorder = Recorder()
    decode(CountingEngine(model), PROMPTS, "diffusion", DecodeOptions(20, block_length=8), recorder)
    return recorder.views


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_a_lower_threshold_commits_a_superset(models: Models, weights: str) -> None:
    grown = 0
    for view in recorded(models[weights]):
        chosen = [chosen_positions(Threshold(threshold), view) for threshold in (1.0, 0.9, 0.6, 0.3, 0.1, 0.0)]
        for higher, lower in itertools.pairwise(chosen):
            assert bool((lower | ~higher).all())
            grown += int((lower & ~higher).sum())
        assert torch.equal(chosen[-1], view.masked)
        assert bool((chosen[0].sum(1) >= 1).all())
    assert grown > 0


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_threshold_zero_takes_one_pass_per_block(models: Models, weights: str, length: int) -> None:
    engine = CountingEngine(models[weights])
    result = decode(engine, PROMPTS, "diffusion", DecodeOptions(65, block_length=length), Threshold(0.0))
    sizes = [min(length, 65 - start) for start in range(0, 65, length)]
    # A block of the seed alone needs no pass; every block but the last is written by a forward.
    passes = [size - 1 for size in sizes if size > 1]
    assert result.accepted == [passes] * 3
    assert result.sequence_forwards == [len(passes) + len(sizes) - 1] * 3
    assert len(engine.steps) == result.forwards + 1 == len(passes) + len(sizes)


def test_one_token_per_pass(models: Models) -> None:
    result = decode(
        CountingEngine(models["trained"]), PROMPTS, "diffusion", DecodeOptions(16, block_length=8), FixedNumber(1)
    )
    assert result.accepted == [[1] * 14] * 3
    for committed_by in result.committed_by:
        assert sorted(committed_by[:8]) == list(range(8))
        assert sorted(committed_by[8:]) == list(range(8, 16))


@pytest.mark.parametrize(("passes", "expected"), [(1, [7]), (3, [3, 2, 2]), (7, [1] * 7), (20, [1] * 7)])
def test_even_steps(models: Models, passes: int, expected: list[int]) -> None:
    options = DecodeOptions(8, block_length=8)
    result = decode(CountingEngine(models["random"]), PROMPTS, "diffusion", options, EvenSteps(passes))
    assert result.accepted == [expected] * 3


def test_total_steps_go_to_the_first_blocks(models: Models) -> None:
    """Whose positions follow from the prompts, which are of unequal length."""
    policy = TotalSteps(10, blocks=4, block_length=8, prompt_lengths=tuple(map(len, PROMPTS)))
    result = decode(CountingEngine(models["random"]), PROMPTS, "diffusion", DecodeOptions(32, block_length=8), policy)
    assert result.accepted == [[3, 2, 2, 3, 2, 2, 4, 3, 4, 3]] * 3
    with pytest.raises(ValueError, match="steps: 3 is fewer than the 4 blocks"):
        TotalSteps(3, 4, 8, (1,))


def test_entropy_zero_commits_one_and_infinity_all(models: Models) -> None:
    for bound, expected in ((0.0, [1] * 7), (float("inf"), [7])):
        options = DecodeOptions(8, block_length=8)
        result = decode(CountingEngine(models["random"]), PROMPTS, "diffusion", options, Entropy(bound))
        assert result.accepted == [expected] * 3


def test_a_policy_that_hesitates_gets_the_most_confident_position(models: Models) -> None:
    class Hesitant:
        def choose(self, view: BlockView) -> Tensor:
            return torch.zeros_like(view.masked)

    def run(policy: object) -> DecodeResult:
        return decode(CountingEngine(models["random"]), PROMPTS, "diffusion", DecodeOptions(20, 8), policy)

    assert run(Hesitant()) == run(FixedNumber(1))


def test_an_oracle_may_look_ahead_without_being_counted(models: Models, readers: dict[str, Reader]) -> None:
    """Its view of another state of the block is what a forward over that state gives."""
    states = []

    class Oracle:
        def choose(self, view: BlockView) -> Tensor:
            chosen = FixedNumber(1).choose(view)
            states.append((view, chosen, view.forward_uncounted(torch.where(chosen, view.sampled, view.tokens))))
            return chosen

    engine = CountingEngine(models["trained"])
    result = decode(engine, PROMPTS, "diffusion", DecodeOptions(12, block_length=6), Oracle())
    plain = decode(CountingEngine(models["trained"]), PROMPTS, "diffusion", DecodeOptions(12, 6), FixedNumber(1))
    assert result == plain
    assert len(engine.steps) == result.forwards + result.prefill + len(states)
    for view, chosen, logits in states:
        state = torch.where(chosen, view.sampled, view.tokens)
        for index, sequence in enumerate(view.sequences):
            text = PROMPTS[sequence] + result.token_ids[sequence]
            whole = text[: int(view.starts[index])] + state[index].tolist()
            expected = readers["trained"].logits(whole, block=6)[-6:]
            assert_close_to_rounding(logits[index], expected, forward_additions(SHAPE, len(whole)))


def test_among_equals_the_first_position_wins() -> None:
    view = BlockView(
        tokens=torch.zeros(1, 4).long(),
        masked=torch.tensor([[False, True, True, True]]),
        sampled=torch.zeros(1, 4).long(),
        read_logits=lambda: torch.zeros(1, 4, 3),
        passes=torch.zeros(1).long(),
        sizes=torch.tensor([4]),
        sequences=[0],
        starts=torch.zeros(1).long(),
        forward_uncounted=lambda tokens: tokens,
    )
    assert FixedNumber(2).choose(view).tolist() == [[False, True, True, False]]
