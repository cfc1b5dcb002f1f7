"""The limit of thinking in every mode that has one, and drafts of several passes."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import CountingEngine

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import DecodeOptions, Threshold
from nld_train.decoding.algorithms.decode import decode

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17, 59, 58]]
LIMIT, END = 24, 9


def decoded(model: Any, prompts: list[list[int]], mode: Any, new: int, **options: Any) -> list[list[int]]:
    policy = Threshold(0.5) if mode == "diffusion" else None
    return decode(CountingEngine(model), prompts, mode, DecodeOptions(new, **options), policy).token_ids


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear"])
@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("limit", [0, 1, 6, 7, 11, LIMIT - 1, LIMIT])
def test_thinking_ends_at_its_limit(models: Models, mode: str, length: int, limit: int) -> None:
    """As if the text up to there and the end of thinking were the prompt of what follows."""
    model = models["trained"]
    free = decoded(model, PROMPTS, mode, LIMIT, block_length=length)
    found = decoded(model, PROMPTS, mode, LIMIT, block_length=length, max_thinking_tokens=limit, end_think_token=END)
    for prompt, text, limited in zip(PROMPTS, free, found, strict=True):
        assert END not in text[:limit]
        expected = text[:limit]
        if limit < LIMIT:
            expected = [*expected, END]
        if rest := LIMIT - len(expected):
            expected += decoded(model, [prompt + expected], mode, rest, block_length=length)[0]
        assert limited == expected


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear"])
def test_thinking_that_has_ended_goes_on(models: Models, mode: str) -> None:
    """Where the token came by itself before the limit, nothing changes."""
    model = models["trained"]
    for prompt in PROMPTS:
        (free,) = decoded(model, [prompt], mode, LIMIT, block_length=5)
        options = {"block_length": 5, "max_thinking_tokens": 12, "end_think_token": free[8]}
        assert decoded(model, [prompt], mode, LIMIT, **options) == [free]


def test_sampled_thinking_ends_too(models: Models) -> None:
    for mode in ("ar", "diffusion", "linear"):
        options = {"block_length": 5, "temperature": 1.3, "max_thinking_tokens": 8, "end_think_token": END}
        for text in decoded(models["trained"], PROMPTS, mode, LIMIT, seeds=3, **options):
            assert END in text[:9]


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("threshold", [0.3, 0.9, 1.0])
def test_drafts_of_several_passes_change_no_token(models: Models, weights: str, threshold: float) -> None:
    model = models[weights]
    engine = CountingEngine(model)
    options = DecodeOptions(LIMIT, block_length=6, draft_threshold=threshold)
    found = decode(engine, PROMPTS, "linear", options)
    assert found.token_ids == decoded(model, PROMPTS, "ar", LIMIT)
    assert len(engine.steps) == found.forwards + found.prefill
    if threshold == 1:
        # One draft per pass: five before the first verification, counted once per sequence.
        assert [bool(step.causal.all()) for step in engine.steps[:7]] == [True] + [False] * 5 + [True]
    single = decode(CountingEngine(model), PROMPTS[1:2], "linear", options)
    assert single.forwards == single.sequence_forwards[0] == found.sequence_forwards[1]


def test_passes_improve_drafts(models: Models) -> None:
    """A later pass sees the drafts of those before it."""
    lengths = []
    for threshold in (0.0, 1.0):
        options = DecodeOptions(LIMIT, block_length=6, draft_threshold=threshold)
        found = decode(CountingEngine(models["trained"]), PROMPTS, "linear", options)
        lengths.append(sum(map(sum, found.accepted)) / sum(map(len, found.accepted)))
    assert lengths[1] > lengths[0]


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("ar", {"max_thinking_tokens": 3}, "max_thinking_tokens: give it together with end_think_token_id"),
        ("ar", {"max_thinking_tokens": -1, "end_think_token": END}, "max_thinking_tokens: -1 is not 0 or more"),
        ("ar", {"max_thinking_tokens": 3, "end_think_token": 99}, "end_think_token_id: 99 is no token"),
        ("quadratic", {"max_thinking_tokens": 3, "end_think_token": END}, "not in quadratic self-speculation"),
        ("linear", {"draft_threshold": 1.5}, r"threshold: 1\.5 is not in \[0, 1\]"),
        ("linear", {"draft_threshold": 0.5, "temperature": 1.0}, "threshold: drafts of several passes are verified"),
        ("diffusion", {"draft_threshold": 0.5}, "draft_threshold: mode 'diffusion' does not draft by confidence"),
    ],
)
def test_refusals(models: Models, mode: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(models["random"], PROMPTS, mode, 4, **options)
