"""Decoding with a cache equals decoding by full forwards without one, in each mode; a batch equals its rows."""

from __future__ import annotations

import pytest
import torch
from naive_decoding import Chooser, Naive, Reader, at_least, diffusion, linear, lowest_entropy, quadratic
from tiny_models import LENGTHS, MASK, CountingEngine
from tiny_shape import SHAPE
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import (
    CommitPolicy,
    DecodeOptions,
    DecodeResult,
    Entropy,
    EvenSteps,
    FixedNumber,
    Mode,
    Step,
    Threshold,
    decode,
)

Models = dict[str, NemotronLabsDiffusionModel]
Readers = dict[str, Reader]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17, 59, 58], list(range(10, 40))]
LIMIT = 21
# Ids that both models predict now and then, so that sequences stop at different lengths.
STOPS = (3, 49)
POLICIES: dict[str, tuple[CommitPolicy, Chooser]] = {
    "threshold 0": (Threshold(0.0), at_least(0.0)),
    "threshold 0.3": (Threshold(0.3), at_least(0.3)),
    "threshold 1": (Threshold(1.0), at_least(1.0)),
    "one per pass": (FixedNumber(1), at_least(2.0)),
    "entropy": (Entropy(1.0), lowest_entropy(1.0)),
}


def check(result: DecodeResult, expected: list[Naive]) -> None:
    assert result.token_ids == [row.tokens for row in expected]
    assert result.accepted == [row.accepted for row in expected]
    assert result.sequence_forwards == [row.forwards for row in expected]
    assert result.forwards == max(row.forwards for row in expected)


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", LENGTHS)
def test_linear(models: Models, readers: Readers, weights: str, length: int) -> None:
    options = DecodeOptions(LIMIT, block_length=length, stop_tokens=STOPS)
    result = decode(CountingEngine(models[weights]), PROMPTS, "linear", options)
    check(result, [linear(readers[weights], prompt, LIMIT, length, STOPS) for prompt in PROMPTS])


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", LENGTHS)
def test_quadratic(models: Models, readers: Readers, weights: str, length: int) -> None:
    options = DecodeOptions(LIMIT, block_length=length, stop_tokens=STOPS)
    result = decode(CountingEngine(models[weights]), PROMPTS, "quadratic", options)
    check(result, [quadratic(readers[weights], prompt, LIMIT, length, STOPS) for prompt in PROMPTS])


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("ar_weight", [0.5, 0.0])
def test_with_an_ar_weight_below_1_the_ensemble_accepts_drafts(
    models: Models, readers: Readers, weights: str, ar_weight: float
) -> None:
    options = DecodeOptions(LIMIT, block_length=4, stop_tokens=STOPS, ar_weight=ar_weight)
    result = decode(CountingEngine(models[weights]), PROMPTS, "quadratic", options)
    expected = [quadratic(readers[weights], prompt, LIMIT, 4, STOPS, ar_weight) for prompt in PROMPTS]
    check(result, expected)
    assert any(count > 1 for row in result.accepted for count in row)
    ids, forwards = models[weights].quadratic_spec_generate(
        torch.tensor([PROMPTS[1]]), LIMIT, 4, eos_token_id=STOPS, ar_weight=ar_weight
    )
    assert ids[0, len(PROMPTS[1]) :].tolist() == expected[1].tokens
    assert forwards == expected[1].forwards + 1


class Listener(CountingEngine):
    """Keeps the logits of every token of each step too."""

    def __init__(self, model: NemotronLabsDiffusionModel) -> None:
        super().__init__(model)
        self.answers: list[Tensor] = []

    def forward(self, step: Step) -> Tensor:
        wanted = super().forward(step)
        everything = torch.arange(step.tokens.shape[1]).expand(len(step.tokens), -1)
        self.answers.append(self.logits_at(everything))
        return wanted


@pytest.mark.parametrize("length", [1, 3, 6])
def test_quadratic_predictions_are_those_of_each_group_alone(models: Models, readers: Readers, length: int) -> None:
    """Every logit of the prefill and of the cycles: tokens alone do not show who saw which mask."""
    engine, reader = Listener(models["random"]), readers["random"]
    result = decode(engine, PROMPTS, "quadratic", DecodeOptions(6, block_length=length))
    texts = [prompt + new for prompt, new in zip(PROMPTS, result.token_ids, strict=True)]
    masks = [MASK] * length
    for row, prompt in enumerate(PROMPTS):
        last = len(prompt) - 1
        found = engine.answers[0][row, last : last + 1 + length]
        check_logits(found, reader.logits(prompt + masks, block=length)[last:])
    for step, answer in list(zip(engine.steps, engine.answers, strict=True))[1:]:
        if len(step.tokens) < len(PROMPTS):
            break
        for row, text in enumerate(texts):
            drafts = step.tokens[row, :length].tolist()
            for group in range(length):
                text_so_far = text[: int(step.cached[row])] + drafts[: group + 1]
                expected = reader.logits(text_so_far + masks, block=length)[len(text_so_far) - 1 :]
                start = length + group * length
                check_logits(answer[row, [group, *range(start, start + length)]], expected)


def check_logits(found: Tensor, expected: Tensor) -> None:
    """Equal but for the mask's, which the engine does not hide yet."""
    found = found.clone()
    found[:, MASK] = float("-inf")
    assert_close_to_rounding(found, expected, forward_additions(SHAPE, 64))


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", list(POLICIES))
def test_diffusion(models: Models, readers: Readers, weights: str, length: int, name: str) -> None:
    policy, chooser = POLICIES[name]
    options = DecodeOptions(LIMIT, block_length=length, stop_tokens=STOPS)
    result = decode(CountingEngine(models[weights]), PROMPTS, "diffusion", options, policy)
    check(result, [diffusion(readers[weights], prompt, LIMIT, length, chooser, STOPS) for prompt in PROMPTS])


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", LENGTHS)
def test_diffusion_of_blocks_that_start_with_masks_alone(
    models: Models, readers: Readers, weights: str, length: int
) -> None:
    policy, chooser = POLICIES[next(iter(POLICIES))]
    options = DecodeOptions(LIMIT, block_length=length, stop_tokens=STOPS, block_start="masks")
    result = decode(CountingEngine(models[weights]), PROMPTS, "diffusion", options, policy)
    expected = [diffusion(readers[weights], prompt, LIMIT, length, chooser, STOPS, seeds=0) for prompt in PROMPTS]
    check(result, expected)
    assert all(all(drafted) for drafted in result.drafted)


VARIANTS: list[tuple[Mode, CommitPolicy | None]] = [
    ("ar", None),
    ("linear", None),
    ("quadratic", None),
    ("diffusion", Threshold(0.4)),
    ("diffusion", EvenSteps(3)),
]


@pytest.mark.parametrize(
    ("weights", "temperature"),
    [
        ("random", 0.0),
        ("trained", 2.0),
        pytest.param("random", 2.0, marks=pytest.mark.long),
        pytest.param("trained", 0.0, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("mode", "policy"), VARIANTS)
def test_a_batch_equals_its_rows(
    models: Models, mode: Mode, policy: CommitPolicy | None, weights: str, temperature: float, length: int
) -> None:
    # A quadratic cycle of 32 drafts runs 1056 tokens of each row.
    wide = mode == "quadratic" and length == 32
    prompts = [*PROMPTS[: 2 if wide else 4], [11, 12], [11, 12]]
    limit = 9 if wide else LIMIT

    def decoded(prompts: list[list[int]], seeds: tuple[int, ...], slots: int | None = None) -> DecodeResult:
        options = DecodeOptions(
            limit,
            block_length=length,
            temperature=temperature,
            top_k=20,
            top_p=0.95,
            seeds=seeds,
            stop_tokens=(*STOPS, 22),
        )
        return decode(CountingEngine(models[weights]), prompts, mode, options, policy, batch_size=slots)

    seeds = tuple(range(100, 100 + len(prompts)))
    together = decoded(prompts, seeds)
    alone = [decoded([prompt], (seed,)) for prompt, seed in zip(prompts, seeds, strict=True)]
    # As many slots as prompts, and fewer, so that prompts are admitted beside sequences that are far ahead.
    for result in (together, decoded(prompts, seeds, 2), decoded(prompts, seeds, 3)):
        for name in ("token_ids", "finish", "sequence_forwards", "accepted", "committed_by", "drafted"):
            assert getattr(result, name) == [getattr(row, name)[0] for row in alone], name
    assert together.forwards == max(row.forwards for row in alone)
    unequal = len(set(map(len, together.token_ids))) > 1 or len(set(together.sequence_forwards)) > 1
    assert wide or unequal, "sequences of unequal progress are needed"
    assert (together.token_ids[-1] == together.token_ids[-2]) == (temperature == 0)
