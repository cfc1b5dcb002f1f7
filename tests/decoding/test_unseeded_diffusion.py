"""Diffusion without AR predictions: blocks of masks alone, and models whose clean tokens saw their whole block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive_decoding import Chooser, Naive, Reader, at_least, diffusion
from tiny_models import MASK, CountingEngine
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, FixedNumber, Step, Threshold, decode
from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.clean_stream import CleanStream

Models = dict[str, NemotronLabsDiffusionModel]
Readers = dict[str, Reader]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17, 59, 58], list(range(10, 40))]
LIMIT, STOPS = 21, (3, 49)
POLICIES: dict[str, tuple[CommitPolicy, Chooser]] = {
    "threshold 0.3": (Threshold(0.3), at_least(0.3)),
    "one per pass": (FixedNumber(1), at_least(2.0)),
}


def engine_of(model: NemotronLabsDiffusionModel, block: int | None) -> CountingEngine:
    engine = CountingEngine(model)
    engine.clean_stream = CleanStream(block, ar=False)
    return engine


def check(result: DecodeResult, expected: list[Naive]) -> None:
    assert result.token_ids == [row.tokens for row in expected]
    assert result.accepted == [row.accepted for row in expected]
    assert result.sequence_forwards == [row.forwards for row in expected]
    assert all(all(drafted) for drafted in result.drafted), "no token is an AR prediction"


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize(
    "length", [pytest.param(1, marks=pytest.mark.long), 4, pytest.param(7, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("block", [None, pytest.param(1, marks=pytest.mark.long), 4, 7])
@pytest.mark.parametrize("name", list(POLICIES))
def test_without_an_ar_loss_blocks_begin_with_a_mask(
    models: Models, readers: Readers, weights: str, length: int, block: int | None, name: str
) -> None:
    """With `block` the prompt's tokens, and those of each block that was decoded, see their whole block."""
    policy, chooser = POLICIES[name]
    options = DecodeOptions(LIMIT, block_length=length, stop_tokens=STOPS)
    result = decode(engine_of(models[weights], block), PROMPTS, "diffusion", options, policy)
    check(result, [diffusion(readers[weights], each, LIMIT, length, chooser, STOPS, 0, block) for each in PROMPTS])


def test_waiting_prompts_are_decoded_the_same(models: Models) -> None:
    options = DecodeOptions(LIMIT, block_length=4, stop_tokens=STOPS)
    together, slot_by_slot = (
        decode(engine_of(models["random"], 4), PROMPTS, "diffusion", options, Threshold(0.3), batch_size=slots)
        for slots in (None, 1)
    )
    assert slot_by_slot.token_ids == together.token_ids


@pytest.mark.parametrize("chosen", [True, False])
def test_the_start_of_blocks_can_be_chosen(models: Models, readers: Readers, chosen: bool) -> None:
    """Whatever the model was trained with."""
    options = DecodeOptions(LIMIT, block_length=4, stop_tokens=STOPS, block_start="seed" if chosen else "masks")
    engine = CountingEngine(models["trained"])
    if chosen:
        engine.clean_stream = CleanStream(ar=False)
    policy, chooser = POLICIES["threshold 0.3"]
    result = decode(engine, PROMPTS, "diffusion", options, policy)
    if chosen:
        usual = DecodeOptions(LIMIT, block_length=4, stop_tokens=STOPS)
        assert result == decode(CountingEngine(models["trained"]), PROMPTS, "diffusion", usual, policy)
    else:
        check(result, [diffusion(readers["trained"], each, LIMIT, 4, chooser, STOPS, 0) for each in PROMPTS])


def test_the_cache_has_the_keys_of_whole_blocks(
    models: Models, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of every forward are those over the whole text, whose blocks see themselves."""
    engine, reader, prompt = engine_of(models["random"], 4), readers["random"], PROMPTS[2]
    seen: list[tuple[int, list[int], Tensor]] = []
    forward = engine.forward

    def listened(step: Step) -> Tensor:
        # Copies: the decoder goes on to change both.
        answer = forward(step)
        seen.append((int(step.cached[0]), step.tokens[0].tolist(), answer[0].clone()))
        return answer

    monkeypatch.setattr(engine, "forward", listened)
    result = decode(engine, [prompt], "diffusion", DecodeOptions(12, block_length=4), Threshold(0.3))
    text = prompt + result.token_ids[0]
    for cached, block, found in seen[1:]:
        sizes = [4, 4, 3] + [4] * ((cached - len(prompt)) // 4)
        expected = reader.logits(text[:cached] + block, block=len(block), before=sizes)[cached:]
        found[:, MASK] = float("-inf")
        assert_close_to_rounding(found, expected, forward_additions(models["random"].config, 64))
    assert len(seen) > 4
    assert {cached for cached, *_ in seen[1:]} == {11, 15, 19}


@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic"])
def test_modes_of_ar_predictions_are_refused(models: Models, mode: Any) -> None:
    engine = engine_of(models["random"], 4)
    with pytest.raises(ValueError, match=rf"^mode: '{mode}' needs AR predictions, and this model was trained with"):
        decode(engine, PROMPTS, mode, DecodeOptions(4, block_length=4))
    with pytest.raises(ValueError, match=r"^block_start: 'seed' is an AR prediction, and this model was trained"):
        decode(engine, PROMPTS, "diffusion", DecodeOptions(4, block_length=4, block_start="seed"), Threshold(0.3))


def test_nothing_is_kept_of_a_text_whose_tokens_see_later_ones(models: Models) -> None:
    """The answer to a prompt does not depend on what was decoded before it."""
    engine, kept, options = engine_of(models["random"], 4), KeptText(), DecodeOptions(11, block_length=4)
    first = decode(engine, [PROMPTS[2]], "diffusion", options, Threshold(0.3), kept=kept)
    turn = [*PROMPTS[2], *first.token_ids[0], 20, 21]
    again = decode(engine, [turn], "diffusion", options, Threshold(0.3), kept=kept)
    alone = decode(engine_of(models["random"], 4), [turn], "diffusion", options, Threshold(0.3))
    assert again.token_ids == alone.token_ids
    assert again.prefill_tokens == [len(turn)]


def test_the_pattern_of_a_prompt() -> None:
    pattern = CleanStream(3).prompt_pattern(5)
    assert pattern is not None
    assert pattern.int().tolist() == [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 1]] * 2
    assert CleanStream().prompt_pattern(5) is None
    assert torch.equal(CleanStream(1).prompt_pattern(4), torch.ones(4, 4).tril().bool())
