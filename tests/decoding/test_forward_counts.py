"""What a result says about itself is what happened."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest
import torch
from tiny_models import LENGTHS, MASK, CountingEngine

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import CommitPolicy, DecodeOptions, Mode, Progress, Threshold
from nld_train.decoding.algorithms.decode import decode

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17]]
MODES: list[tuple[Mode, CommitPolicy | None]] = [
    ("ar", None),
    ("diffusion", Threshold(0.5)),
    ("linear", None),
    ("quadratic", None),
]


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("mode", "policy"), MODES)
def test_reported_forwards_are_the_engines(
    models: Models, mode: Mode, policy: CommitPolicy | None, length: int, weights: str
) -> None:
    engine = CountingEngine(models[weights])
    result = decode(engine, PROMPTS, mode, DecodeOptions(20, block_length=length, stop_tokens=(49,)), policy)
    assert len(engine.steps) == result.forwards + result.prefill
    for row, prompt in enumerate(PROMPTS):
        alone = CountingEngine(models[weights])
        decode(alone, [prompt], mode, DecodeOptions(20, block_length=length, stop_tokens=(49,)), policy)
        assert len(alone.steps) == result.sequence_forwards[row] + 1
    assert result.prefill == 1
    assert result.new_tokens == [len(tokens) for tokens in result.token_ids]
    expected = [new / forwards for new, forwards in zip(result.new_tokens, result.sequence_forwards, strict=True)]
    assert result.tokens_per_forward == expected


@pytest.mark.parametrize(("mode", "policy"), MODES)
def test_finished_sequences_free_their_slots(models: Models, mode: Mode, policy: CommitPolicy | None) -> None:
    engine = CountingEngine(models["trained"])
    result = decode(engine, PROMPTS, mode, DecodeOptions(20, block_length=4, stop_tokens=(49,)), policy)
    rows = [len(step.tokens) for step in engine.steps]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 3
    assert rows[-1] < 3
    assert [len(PROMPTS)] + [
        sum(count >= cycle for count in result.sequence_forwards) for cycle in range(1, len(rows))
    ] == rows


@pytest.mark.parametrize(("mode", "policy"), MODES)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_waiting_prompts_are_admitted_to_freed_slots(
    models: Models, mode: Mode, policy: CommitPolicy | None, slots: int
) -> None:
    """No slot is free while a prompt waits, and what is prefilled is the prompts that begin, nothing else."""
    engine, prompts = CountingEngine(models["trained"]), [*PROMPTS, *PROMPTS[:2], [30]]
    options = DecodeOptions(20, block_length=4, stop_tokens=(49,))
    result = decode(engine, prompts, mode, options, policy, batch_size=slots)
    assert len(engine.steps) == result.forwards + result.prefill
    admitted, active, waiting = 0, 0, []
    for step in engine.steps:
        if not bool(step.cached.any()):
            admitted += len(step.tokens)
            continue
        active += len(step.tokens)
        if admitted < len(prompts):
            waiting.append(len(step.tokens))
    assert (admitted, active) == (len(prompts), sum(result.sequence_forwards))
    assert waiting
    assert set(waiting) == {slots}
    assert slots == 1 or result.forwards < sum(result.sequence_forwards)


@pytest.mark.parametrize(("mode", "policy"), MODES)
def test_each_token_names_the_pass_that_committed_it(models: Models, mode: Mode, policy: CommitPolicy | None) -> None:
    result = decode(CountingEngine(models["trained"]), PROMPTS, mode, DecodeOptions(20, block_length=4), policy)
    for tokens, committed_by, drafted, forwards in zip(
        result.token_ids, result.committed_by, result.drafted, result.sequence_forwards, strict=True
    ):
        assert len(tokens) == len(committed_by) == len(drafted)
        assert committed_by[0] == 0
        assert max(committed_by) <= forwards
        assert not drafted[0]
        assert any(drafted) == (mode != "ar")
        if mode != "diffusion":
            assert committed_by == sorted(committed_by)
            cycles = [committed_by.count(number) for number in sorted(set(committed_by[1:]))]
            assert cycles == result.accepted[result.token_ids.index(tokens)]


def test_the_first_token_comes_from_the_prefill(models: Models) -> None:
    for mode, policy in MODES:
        result = decode(CountingEngine(models["random"]), PROMPTS, mode, DecodeOptions(1), policy)
        assert (result.forwards, result.prefill, result.sequence_forwards) == (0, 1, [0, 0, 0])
        assert result.tokens_per_forward == [1.0] * 3


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize(("mode", "policy"), MODES)
@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_the_mask_is_never_text(
    models: Models, weights: str, mode: Mode, policy: CommitPolicy | None, temperature: float
) -> None:
    model = models[weights]
    head = model.diffusion_head.weight
    before = head[MASK].clone()
    with torch.no_grad():
        head[MASK] = head.mean(0) * 50 + 3
    try:
        options = DecodeOptions(12, block_length=4, temperature=temperature)
        result = decode(CountingEngine(model), PROMPTS, mode, options, policy)
    finally:
        with torch.no_grad():
            head[MASK] = before
    assert not any(MASK in tokens for tokens in result.token_ids)


@pytest.mark.parametrize(("mode", "policy"), MODES)
def test_an_observer_sees_the_text_grow(models: Models, mode: Mode, policy: CommitPolicy | None) -> None:
    seen: dict[int, list[Progress]] = defaultdict(list)
    options = DecodeOptions(20, block_length=4, stop_tokens=(49,))
    result = decode(
        CountingEngine(models["trained"]),
        PROMPTS,
        mode,
        options,
        policy,
        lambda event: seen[event.sequence].append(event),
    )
    for row, tokens in enumerate(result.token_ids):
        assert list(seen[row][-1].tokens) == tokens
        assert [event.finish for event in seen[row]] == [None] * (len(seen[row]) - 1) + [result.finish[row]]
        assert (seen[row][-1].forwards, seen[row][-1].seconds) == (result.sequence_forwards[row], result.seconds[row])
        assert seen[row][-1].seconds > 0
        for earlier, later in zip(seen[row][:-1], seen[row][1:], strict=True):
            assert later.tokens[: len(earlier.tokens)] == earlier.tokens
        for event in seen[row]:
            reported = zip((*event.tokens, *event.block), event.committed_by, event.drafted, strict=True)
            final = zip(tokens, result.committed_by[row], result.drafted[row], strict=True)
            # A block may go on behind a stop.
            assert all(now == then or now[0] is None for now, then in zip(reported, final, strict=False))
    if mode == "diffusion":
        assert any(None in event.block and event.block.count(None) < 3 for events in seen.values() for event in events)
    if mode in ("linear", "quadratic"):
        assert any(event.rejected for events in seen.values() for event in events)


def test_seconds_of_a_row_are_not_its_observers(models: Models) -> None:
    def slow(event: Progress) -> None:
        time.sleep(0.2 if event.finish is not None else 0.02)

    result = decode(CountingEngine(models["trained"]), PROMPTS, "ar", DecodeOptions(5), observer=slow, batch_size=2)
    # Each tells of five tokens, beside another row for at least two of them.
    assert all(0 < seconds < 0.2 for seconds in result.seconds), result.seconds


def words(ids: list[int]) -> str:
    return "".join(f"<{token}>" for token in ids)


@pytest.mark.parametrize(("mode", "policy"), MODES)
def test_stop_strings(models: Models, mode: Mode, policy: CommitPolicy | None) -> None:
    engine = CountingEngine(models["trained"])
    whole = decode(engine, PROMPTS, mode, DecodeOptions(20, block_length=4), policy).token_ids
    stop = "".join(f"<{token}>" for token in whole[1][5:7])[1:-1]
    options = DecodeOptions(20, block_length=4, stop_strings=(stop, "never"), to_text=words)
    result = decode(engine, PROMPTS, mode, options, policy)
    assert result.token_ids[1] == whole[1][:7]
    assert result.finish[1] == "stop"
    for tokens, finish, all_tokens in zip(result.token_ids, result.finish, whole, strict=True):
        assert tokens == all_tokens[: len(tokens)]
        assert (stop in words(tokens)) == (finish == "stop")
