"""The oracle ends where one token per pass ends, in as few passes as it can find."""

from __future__ import annotations

import pytest
import torch
from tiny_models import LENGTHS, CountingEngine
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import BlockView, DecodeOptions, DecodeResult, FixedNumber, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.evaluation.oracle import Oracle, fewest_passes

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17], [25, 26, 20, 21, 33, 34], [10, 11, 12]]
STOPS = (3, 49)


def one_per_pass(model: NemotronLabsDiffusionModel, options: DecodeOptions) -> DecodeResult:
    return decode(CountingEngine(model), PROMPTS, "diffusion", options, FixedNumber(1))


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_same_text_in_no_more_passes(models: Models, weights: str, length: int) -> None:
    options = DecodeOptions(40, block_length=length, stop_tokens=STOPS)
    slow = one_per_pass(models[weights], options)
    oracle = Oracle(exhaustive=0)
    fast = decode(CountingEngine(models[weights]), PROMPTS, "diffusion", options, oracle)
    assert fast.token_ids == slow.token_ids
    assert fast.finish == slow.finish
    assert all(few <= many for few, many in zip(fast.sequence_forwards, slow.sequence_forwards, strict=True))
    assert all(block.passes <= block.masks for block in oracle.blocks)
    assert any(block.complete for block in oracle.blocks) or length == 1
    assert sum(block.passes for block in oracle.blocks) == sum(map(len, fast.accepted))
    if length == 7 and weights == "trained":
        assert sum(fast.sequence_forwards) < 0.7 * sum(slow.sequence_forwards), "otherwise it finds nothing"


@pytest.mark.parametrize("weights", [pytest.param("random", marks=pytest.mark.long), "trained"])
def test_against_an_exhaustive_search(models: Models, weights: str) -> None:
    """On every block of at most 6 masks; and it falls short of the shortest way in few of them."""
    blocks = []
    for length in (2, 4, 7):
        oracle = Oracle()
        decode(CountingEngine(models[weights]), PROMPTS, "diffusion", DecodeOptions(28, block_length=length), oracle)
        blocks += oracle.blocks
    assert all(block.fewest is not None and block.complete for block in blocks)
    assert all(block.fewest <= block.passes <= block.masks for block in blocks)
    short = sum(block.fewest < block.passes for block in blocks)
    print(f"{weights}: more passes than needed in {short} of {len(blocks)} blocks")
    assert short <= len(blocks) / 10
    assert len({block.fewest for block in blocks}) > 2


def test_a_batch_has_the_blocks_of_its_rows(models: Models) -> None:
    options = DecodeOptions(23, block_length=5, stop_tokens=STOPS)

    def passes(prompts: list[list[int]]) -> list[tuple[list[int], int, int, int | None]]:
        oracle = Oracle()
        decode(CountingEngine(models["trained"]), prompts, "diffusion", options, oracle)
        return sorted(
            (block.target[: block.masks + 1].tolist(), block.passes, block.forwards, block.fewest)
            for block in oracle.blocks
        )

    assert passes(PROMPTS) == sorted(block for prompt in PROMPTS for block in passes([prompt]))


class Puzzle:
    """Predictions of a block of 4 (a seed and three masks) that depend on what is committed, written out by hand."""

    vocabulary = 8

    def __init__(self) -> None:
        self.forwards = 0

    def logits(self, tokens: Tensor) -> Tensor:
        """Target `1, 2, 3`. Position 2 is wrong until position 1 is known; position 3 is right at the start, wrong
        while only 1 is known, and right again after 2."""
        known = {position for position in (1, 2, 3) if int(tokens[0, position]) != 0}
        predictions = {1: (1, 9.0), 2: (2 if 1 in known else 7, 3.0), 3: (3 if known != {1} else 6, 2.0)}
        logits = torch.zeros(1, 4, self.vocabulary)
        for position, (token, height) in predictions.items():
            logits[0, position, token] = height
        return logits

    def forward_uncounted(self, tokens: Tensor) -> Tensor:
        self.forwards += 1
        return self.logits(tokens)

    def view(self) -> BlockView:
        tokens = torch.tensor([[5, 0, 0, 0]])
        logits = self.logits(tokens)
        return BlockView(
            tokens=tokens,
            masked=torch.tensor([[False, True, True, True]]),
            sampled=logits.argmax(-1),
            read_logits=lambda: logits,
            passes=torch.zeros(1).long(),
            sizes=torch.tensor([4]),
            sequences=[0],
            starts=torch.zeros(1).long(),
            forward_uncounted=self.forward_uncounted,
        )


def test_what_it_commits_on_a_block_known_by_heart() -> None:
    view = Puzzle().view()
    oracle = Oracle()
    assert oracle.choose(view).tolist() == [[False, True, False, True]]
    (block,) = oracle.blocks
    assert block.target.tolist() == [5, 1, 2, 3]
    assert (block.masks, block.passes, block.fewest, block.complete) == (3, 1, 2, False)
    assert int(fewest_passes(view, block.target[None])) == 2


def test_no_forwards_left_means_one_per_pass() -> None:
    puzzle = Puzzle()
    oracle = Oracle(budget=2, exhaustive=0)
    assert oracle.choose(puzzle.view()).tolist() == [[False, True, False, False]]
    assert oracle.blocks[0].exhausted
    assert oracle.blocks[0].fewest is None
    assert puzzle.forwards == oracle.blocks[0].forwards == 2
    assert Oracle(budget=3, exhaustive=0).choose(Puzzle().view()).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("budget", [30, 50, 5000])
def test_the_budget_is_kept(models: Models, budget: int) -> None:
    oracle = Oracle(budget=budget, exhaustive=0)
    engine = CountingEngine(models["trained"])
    result = decode(engine, PROMPTS[:1], "diffusion", DecodeOptions(48, block_length=24), oracle)
    assert all(block.forwards <= budget for block in oracle.blocks)
    assert any(block.exhausted for block in oracle.blocks) == (budget < 5000)
    # A row alone: every uncounted forward of the engine is on its block's bill.
    looks = len(engine.steps) - result.forwards - result.prefill
    assert looks == sum(block.forwards for block in oracle.blocks)


def test_compared_policies_start_where_the_oracle_does(models: Models) -> None:
    policies = {"one": FixedNumber(1), "all": Threshold(0.0), "half": Threshold(0.5)}
    oracle = Oracle(policies=policies)
    decode(CountingEngine(models["trained"]), PROMPTS, "diffusion", DecodeOptions(36, block_length=6), oracle)
    for block in oracle.blocks:
        assert block.policies["one"] == (block.masks, True)
        assert block.policies["all"][0] == 1
        # No policy that ends at the target takes fewer passes than the shortest sequence of commits.
        assert all(passes >= block.fewest for passes, same in block.policies.values() if same)
        assert block.policies["all"][1] == (block.fewest == 1)
    assert {block.policies["half"][1] for block in oracle.blocks} == {True, False}


def test_it_wants_greedy_decoding(models: Models) -> None:
    options = DecodeOptions(12, block_length=6, temperature=3.0)
    with pytest.raises(ValueError, match="take a temperature of 0"):
        decode(CountingEngine(models["random"]), PROMPTS, "diffusion", options, Oracle())
