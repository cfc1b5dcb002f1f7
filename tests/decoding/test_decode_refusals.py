"""Bad requests end in one clear line, before anything is computed."""

from __future__ import annotations

import pytest
from tiny_models import MASK, CountingEngine, random_model

from nld_train.decoding import DecodeOptions, Entropy, EvenSteps, FixedNumber, Threshold
from nld_train.decoding.algorithms.decode import decode


@pytest.fixture(scope="module")
def engine() -> CountingEngine:
    return CountingEngine(random_model(max_position_embeddings=16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_length": 0}, "block_length: 0 is not 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is not 1 or more"),
        ({"temperature": -0.5}, "temperature: -0.5 is not 0 or more"),
        ({"temperature": float("nan")}, "temperature: nan is not 0 or more"),
        ({"top_k": -1}, "top_k: -1 is not 0 or more"),
        ({"top_p": 0.0}, r"top_p: 0.0 is not in \(0, 1\]"),
        ({"ar_weight": 1.5}, r"ar_weight: 1.5 is not in \[0, 1\]"),
        ({"stop_strings": ("x",)}, "stop_strings: they need to_text"),
        ({"stop_strings": ("",), "to_text": str}, "stop_strings: an empty string"),
    ],
)
def test_options(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeOptions(**{"max_new_tokens": 5, **settings})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts: there are none"),
        ([[1], []], "prompt 1 is empty"),
        ([[1, MASK, 2]], "prompt 0 contains the mask token"),
        ([[1] * 16], "prompt 0 has 16 tokens, which leaves no room in the context of 16"),
        ([[1, 60]], "prompt 0 has ids outside the vocabulary of 60"),
        ([[1, -1]], "prompt 0 has ids outside the vocabulary of 60"),
        ([[1], [1] * 14], "3 do not fit into the context of 16 after the 14 tokens of prompt 1; at most 2 do"),
    ],
)
def test_prompts(engine: CountingEngine, prompts: list[list[int]], message: str) -> None:
    for mode, policy in (("ar", None), ("diffusion", Threshold(0.5)), ("linear", None), ("quadratic", None)):
        with pytest.raises(ValueError, match=message) as error:
            decode(engine, prompts, mode, DecodeOptions(3), policy)
        assert "\n" not in str(error.value)
    assert not engine.steps


def test_modes_and_what_they_need(engine: CountingEngine) -> None:
    with pytest.raises(ValueError, match="mode: 'backwards' is not one of ar, diffusion, linear, quadratic"):
        decode(engine, [[1]], "backwards", DecodeOptions(3, block_length=4))
    with pytest.raises(ValueError, match="policy: mode 'diffusion' needs one"):
        decode(engine, [[1]], "diffusion", DecodeOptions(3, block_length=4))
    with pytest.raises(ValueError, match="policy: mode 'ar' takes none"):
        decode(engine, [[1]], "ar", DecodeOptions(3, block_length=4), Threshold(0.5))
    with pytest.raises(ValueError, match="adapter: this model has no drafter adapter"):
        decode(engine, [[1]], "linear", DecodeOptions(3, block_length=4, adapter=True))
    with pytest.raises(ValueError, match="adapter: mode 'quadratic' does not draft with one"):
        decode(engine, [[1]], "quadratic", DecodeOptions(3, block_length=4, adapter=True))
    with pytest.raises(ValueError, match="batch_size: 0 is not 1 or more"):
        decode(engine, [[1]], "ar", DecodeOptions(3, block_length=4), batch_size=0)
    with pytest.raises(ValueError, match="seeds: 3 of them for 1 prompts"):
        decode(engine, [[1]], "ar", DecodeOptions(3, block_length=4, seeds=(1, 2, 3)))


def test_blocks_longer_than_the_context() -> None:
    """A pass computes logits for a whole block: a billion of them would be terabytes."""
    engine = CountingEngine(random_model(max_position_embeddings=16))
    for mode, policy in (("diffusion", Threshold(0.5)), ("linear", None), ("quadratic", None)):
        with pytest.raises(ValueError, match="block_length: 17 is longer than the context of 16"):
            decode(engine, [[1]], mode, DecodeOptions(3, block_length=17), policy)
    engine = CountingEngine(random_model(max_position_embeddings=100))
    with pytest.raises(ValueError, match=r"computes 4160 positions in a pass with 64 drafts; the most here is 4096"):
        decode(engine, [[1]], "quadratic", DecodeOptions(3, block_length=64))
    assert not engine.steps
    decode(engine, [[1]], "ar", DecodeOptions(1, block_length=10**9))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold: .* is not in \[0, 1\]"):
        Threshold(threshold)


def test_other_policies() -> None:
    with pytest.raises(ValueError, match="0 positions per pass"):
        FixedNumber(0)
    with pytest.raises(ValueError, match="0 denoising passes"):
        EvenSteps(0)
    with pytest.raises(ValueError, match=r"entropy of -1\.0"):
        Entropy(-1.0)
