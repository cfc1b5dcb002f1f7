"""Greedy self-speculation returns the AR tokens exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from naive_decoding import Reader, ar
from tiny_models import LENGTHS, CountingEngine, random_model, trained_model

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import DecodeOptions, DecodeResult
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.sampling import TokenSampling
from nld_train.decoding.algorithms.verification import Drafts, mixed_logits, verify

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17, 59, 58], list(range(10, 40))]
LIMIT = 45


@pytest.fixture(scope="module")
def ar_texts(readers: dict[str, Reader]) -> dict[str, list[list[int]]]:
    return {name: [ar(reader, prompt, LIMIT).tokens for prompt in PROMPTS] for name, reader in readers.items()}


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_ar_decoding_is_the_stock_models_argmax(models: Models, ar_texts: dict, weights: str) -> None:
    result = decode(CountingEngine(models[weights]), PROMPTS, "ar", DecodeOptions(LIMIT))
    assert result.token_ids == ar_texts[weights]


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_output_is_the_ar_output(models: Models, ar_texts: dict, weights: str, mode: str, length: int) -> None:
    # A quadratic cycle of 32 drafts runs 1056 tokens.
    limit = LIMIT if length < 32 or mode == "linear" else 20
    result = decode(CountingEngine(models[weights]), PROMPTS, mode, DecodeOptions(limit, block_length=length))
    assert result.token_ids == [text[:limit] for text in ar_texts[weights]]
    assert all(sum(accepted) == limit - 1 for accepted in result.accepted)
    assert all(max(accepted) <= length for accepted in result.accepted)


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_drafts_of_trained_weights_are_accepted(models: Models, mode: str) -> None:
    """Otherwise the tests above would only ever see rejected drafts."""
    result = decode(CountingEngine(models["trained"]), PROMPTS, mode, DecodeOptions(LIMIT, block_length=7))
    accepted = [count for row in result.accepted for count in row]
    assert max(accepted) >= 5
    assert min(accepted) < 4


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize("length", LENGTHS)
def test_stops_anywhere(models: Models, ar_texts: dict, weights: str, mode: str, length: int) -> None:
    """A stop at every index of the text of some sequence; each has its own, so that they finish one after the other."""
    # A quadratic cycle of 32 drafts runs 1056 tokens.
    for first in (0, 9, 18) if length == 32 and mode == "quadratic" else range(5):
        indices = [(first + 5 * row) % 20 for row in range(len(PROMPTS))]
        stops = tuple({text[at] for text, at in zip(ar_texts[weights], indices, strict=True)})
        expected = [first_stop(text, stops) for text in ar_texts[weights]]
        options = DecodeOptions(LIMIT, block_length=length, stop_tokens=stops)
        result = decode(CountingEngine(models[weights]), PROMPTS, mode, options)
        assert result.token_ids == expected
        assert result.finish == ["stop"] * len(PROMPTS)


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize("length", LENGTHS)
def test_any_batch(models: Models, ar_texts: dict, weights: str, mode: str, length: int) -> None:
    # A quadratic cycle of 32 drafts runs 1056 tokens of each row.
    wide = mode == "quadratic" and length == 32
    limit = 12 if wide else LIMIT
    generator = torch.Generator().manual_seed(length)
    for size in (1, 3) if wide else (1, 2, 5, 9):
        rows = torch.randint(len(PROMPTS), (size,), generator=generator).tolist()
        options = DecodeOptions(limit, block_length=length)
        result = decode(CountingEngine(models[weights]), [PROMPTS[row] for row in rows], mode, options)
        assert result.token_ids == [ar_texts[weights][row][:limit] for row in rows]


def first_stop(text: list[int], stops: tuple[int, ...]) -> list[int]:
    return text[: next(index for index, token in enumerate(text) if token in stops) + 1]


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_never_more_than_the_limit(models: Models, ar_texts: dict, mode: str, limit: int) -> None:
    result = decode(CountingEngine(models["trained"]), PROMPTS, mode, DecodeOptions(limit, block_length=8))
    assert result.token_ids == [text[:limit] for text in ar_texts["trained"]]
    assert result.finish == ["length"] * len(PROMPTS)


@pytest.mark.parametrize("weights", ["random", pytest.param("trained", marks=pytest.mark.long)])
def test_any_adapter_leaves_the_text_alone(adapter: Path, weights: str) -> None:
    # Models of its own, because the adapter stays on them.
    model = random_model() if weights == "random" else trained_model(steps=20)
    expected = decode(CountingEngine(model), PROMPTS, "ar", DecodeOptions(LIMIT)).token_ids
    lengths = (1, 2, 7, 32)
    plain = [linear(model, length) for length in lengths]
    model.load_drafter(adapter)
    for length, without in zip(lengths, plain, strict=True):
        engine = CountingEngine(model)
        result = decode(engine, PROMPTS, "linear", DecodeOptions(LIMIT, block_length=length, adapter=True))
        assert result.token_ids == expected
        assert any(step.adapter for step in engine.steps) == (length > 1)
        assert not any(step.adapter and bool(step.causal.any()) for step in engine.steps)
        assert length == 1 or result.accepted != without.accepted
        for index in (0, 4, 17):
            stops = tuple({text[index] for text in expected})
            stopped = linear(model, length, adapter=True, stop_tokens=stops)
            assert stopped.token_ids == [first_stop(text, stops) for text in expected]


def linear(model: NemotronLabsDiffusionModel, length: int, **settings: Any) -> DecodeResult:
    return decode(CountingEngine(model), PROMPTS, "linear", DecodeOptions(LIMIT, block_length=length, **settings))


def test_a_sequence_may_fill_the_context(models: Models) -> None:
    model = random_model(max_position_embeddings=32)
    for length in (30, 10):
        prompt, room = [[9] * length], 32 - length
        expected = decode(CountingEngine(model), prompt, "ar", DecodeOptions(room)).token_ids
        assert len(expected[0]) == room
        for mode in ("linear", "quadratic"):
            result = decode(CountingEngine(model), prompt, mode, DecodeOptions(room, block_length=8))
            assert result.token_ids == expected


def test_an_ensemble_of_both_predictions_is_another_text(models: Models, ar_texts: dict) -> None:
    texts = [
        decode(CountingEngine(models["random"]), PROMPTS, "quadratic", DecodeOptions(LIMIT, 4, ar_weight=weight))
        for weight in (1.0, 1.0 - 1e-6, 0.0)
    ]
    assert texts[0].token_ids == texts[1].token_ids == ar_texts["random"]
    assert texts[2].token_ids != ar_texts["random"]


def test_a_draft_that_only_the_ensemble_prefers_is_accepted() -> None:
    """After the first draft the AR argmax is token 1, the argmax of the mixture token 0."""
    target = mixed_logits(torch.tensor([0.3, 0.4, 0.3]).log(), torch.tensor([0.8, 0.1, 0.1]).log(), ar_weight=0.5)
    greedy = TokenSampling(DecodeOptions(2), [0, 1]).shaping
    drafts = Drafts(torch.tensor([[2, 0], [2, 1]]), torch.tensor([2, 2]), None)
    accepted, bonus = verify(greedy, drafts, target.expand(2, 2, 3))
    assert accepted.tolist() == [1, 0]
    assert bonus.tolist() == [0, 0]


def test_a_random_model_predicts_many_tokens(ar_texts: dict) -> None:
    """A degenerate text would make every comparison here easy."""
    assert all(len(set(text)) > 10 for text in ar_texts["random"])
    assert torch.tensor(ar_texts["random"]).unique(dim=0).shape[0] == len(PROMPTS)
