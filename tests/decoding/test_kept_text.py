"""A text that stays in the cache between calls: the same answers as without it, from fewer computed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tiny_models import CountingEngine

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import DecodeOptions, Engine, Mode, Progress, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.engines.megatron_engine import MegatronEngine

MODES: tuple[Mode, ...] = ("ar", "diffusion", "linear", "quadratic")
BLOCK = 4
FIRST = [11, 12, 13, 14, 15, 16]


def run(engine: Engine, prompt: list[int], mode: Mode, kept: KeptText | None, **options: Any) -> Any:
    policy = Threshold(0.5) if mode == "diffusion" else None
    settings = DecodeOptions(**{"max_new_tokens": 11, "block_length": BLOCK, **options})
    return decode(engine, [prompt], mode, settings, policy, kept=kept)


def assert_same(kept: Any, fresh: Any) -> None:
    for name in ("token_ids", "finish", "forwards", "accepted", "committed_by", "drafted"):
        assert getattr(kept, name) == getattr(fresh, name), name


def check_conversation(engine: Engine, modes: Sequence[Mode], **options: Any) -> None:
    """Turns that go on, in one mode after another, against calls that compute all."""
    kept, prompt, turns = KeptText(room=96), FIRST, []
    for number, mode in enumerate(modes):
        found = run(engine, prompt, mode, kept, **options)
        turns.append((prompt, mode, found))
        prompt = [*prompt, *found.token_ids[0], 20 + number, 21, 22]
    assert turns[0][2].prefill_tokens == [len(FIRST)]
    # The new message, and what of the answer was not in the cache yet: at most a block.
    assert all(3 <= found.prefill_tokens[0] <= 3 + BLOCK for *_, found in turns[1:])
    for prompt, mode, found in turns:
        assert_same(found, run(engine, prompt, mode, None, **options))


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("mode", MODES)
def test_turns_of_one_mode(models: dict[str, NemotronLabsDiffusionModel], weights: str, mode: Mode) -> None:
    check_conversation(CountingEngine(models[weights]), [mode] * 3)


def test_modes_that_change_between_turns(models: dict[str, NemotronLabsDiffusionModel]) -> None:
    check_conversation(CountingEngine(models["trained"]), [*MODES, "ar"])


@pytest.mark.parametrize("mode", MODES)
def test_answers_that_stop(models: dict[str, NemotronLabsDiffusionModel], mode: Mode) -> None:
    """Drafts behind a stop may be in the cache, and are no part of the text."""
    engine = CountingEngine(models["trained"])
    for stop in run(engine, FIRST, mode, None).token_ids[0][1:6:2]:
        check_conversation(engine, [mode] * 2, stop_tokens=(stop,))


def test_turns_on_layers_of_megatron(megatron_engine: MegatronEngine) -> None:
    with megatron_engine.decoding() as engine:
        check_conversation(engine, ["linear", "diffusion"])


def test_only_what_differs_is_computed(models: dict[str, NemotronLabsDiffusionModel]) -> None:
    """Prompts that an earlier text begins, ends, or differs from in the middle, and an answer that was interrupted."""
    engine, kept = CountingEngine(models["random"]), KeptText(room=96)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    longer = [*FIRST, 30, 31, 32, 33]
    rewritten = [*longer[:7], 40, *longer[8:]]
    for prompt, expected in ((longer, 10), (longer, 1), (FIRST, 1), (longer, 4), (rewritten, 3), ([9, *FIRST], 7)):
        begin = len(engine.steps)
        found = run(engine, prompt, "ar", kept)
        assert found.prefill_tokens == [expected]
        assert engine.steps[begin].tokens.shape == (1, expected)
        assert engine.steps[begin].cached.tolist() == [len(prompt) - expected]
        assert_same(found, run(CountingEngine(models["random"]), prompt, "ar", None))
    with pytest.raises(KeyboardInterrupt):
        decode(engine, [[9, *FIRST, 50]], "ar", DecodeOptions(11), observer=interrupt, kept=kept)
    found = run(engine, [9, *FIRST, 51], "ar", kept)
    assert found.prefill_tokens == [1]
    assert_same(found, run(engine, [9, *FIRST, 51], "ar", None))


def test_a_conversation_that_outgrows_the_cache_is_computed_anew(models: dict[str, NemotronLabsDiffusionModel]) -> None:
    engine, kept, prompt, prefilled = CountingEngine(models["random"]), KeptText(), FIRST, []
    for _ in range(6):
        found = run(engine, prompt, "ar", kept)
        assert_same(found, run(CountingEngine(models["random"]), prompt, "ar", None))
        prefilled.append(found.prefill_tokens[0])
        prompt = [*prompt, *found.token_ids[0], 20]
    # The cache has 17, 34, 68 and 136 entries.
    assert prefilled == [6, 18, 30, 2, 2, 66]
