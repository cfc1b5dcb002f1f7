"""`generate` as `transformers` has it: AR as of the stock model, and the other modes chosen by `decoding_mode`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_exports import STOP, ministral3, random_weights, write_export
from tiny_shape import MASK
from tolerance import assert_close_to_rounding, forward_additions
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

MODES = ["ar", "diffusion", "linear", "quadratic"]


@pytest.fixture(scope="module")
def stock() -> Any:
    model = ministral3(random_weights())
    model.generation_config = GenerationConfig(eos_token_id=[STOP], pad_token_id=0, suppress_tokens=[MASK])
    return model


class Tokens:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.got.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.7, "min_new_tokens": 9},
        {"do_sample": True, "temperature": 1.5, "top_k": 30, "top_p": 0.9, "num_return_sequences": 2},
        {"cache_implementation": "static", "disable_compile": True},
        {"use_cache": False},
    ],
    ids=str,
)
def test_ar_is_that_of_the_stock_model(model: Any, stock: Any, prompts: Any, settings: dict[str, Any]) -> None:
    ids, mask = prompts[0][:2], prompts[1][:2]
    found, expected = [], []
    for side, tokens in ((found, model), (expected, stock)):
        torch.manual_seed(0)
        side.append(tokens.generate(ids, attention_mask=mask, max_new_tokens=14, **settings))
    assert found[0].tolist() == expected[0].tolist()


@torch.no_grad()
def test_a_cache_changes_no_logits(model: Any, stock: Any) -> None:
    ids = torch.randint(6, 57, (2, 40), generator=torch.Generator().manual_seed(0))
    whole = stock(ids, output_hidden_states=True)
    first = model(ids[:, :25], use_cache=True)
    second = model(ids[:, 25:], past_key_values=first.past_key_values, logits_to_keep=3)
    assert first.past_key_values.get_seq_length() == 40
    additions = forward_additions(model.config, 40)
    assert_close_to_rounding(first.logits, whole.logits[:, :25], additions)
    assert_close_to_rounding(second.logits, whole.logits[:, -3:], additions)
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == len(whole.hidden_states)
    for one, other in zip(states, whole.hidden_states, strict=True):
        assert_close_to_rounding(one, other, additions)
    embedded = model(inputs_embeds=model.encoder.embed_tokens(ids), return_dict=False)
    assert_close_to_rounding(embedded[0], whole.logits, additions)
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="past_key_values: labels and mode 'block' have no cache"):
        model(ids, past_key_values=first.past_key_values, mode="block")


@pytest.mark.parametrize("mode", MODES)
def test_the_generation_config_chooses_the_mode(load: Any, prompts: Any, tmp_path: Path, mode: str) -> None:
    """On the object, in its file, in the call: the tokens are those of the mode's own method."""
    ids, mask = prompts
    model = load()
    calls = {"ar": model.ar_generate, "linear": model.linear_spec_generate, "quadratic": model.quadratic_spec_generate}
    if mode == "diffusion":
        expected, _ = model.diffusion_generate(ids, 14, 4, threshold=0.6, attention_mask=mask)
    else:
        blocks = {} if mode == "ar" else {"block_length": 4}
        expected, _ = calls[mode](ids, 14, attention_mask=mask, **blocks)
    own = {"decoding_mode": mode, "block_length": 4, "diffusion_confidence_threshold": 0.6}
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=14, **own), expected)
    config = GenerationConfig(max_new_tokens=14, **own)
    assert torch.equal(model.generate(ids, config, attention_mask=mask), expected)
    for key, value in own.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(tmp_path)
    for one in (model, load(tmp_path)):
        assert torch.equal(one.generate(ids, attention_mask=mask, max_new_tokens=14), expected)
        assert one.stop_tokens() == (STOP,)


def test_stop_tokens_and_padding_of_the_object_decide(load: Any, prompts: Any, tmp_path: Path) -> None:
    ids, mask = prompts
    model = load()
    whole = model.ar_generate(ids[:1], 12, eos_token_id=())[0][0, 12:].tolist()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = whole[3], 7
    model.save_pretrained(tmp_path)
    for one in (model, load(tmp_path)):
        assert one.stop_tokens() == (whole[3],)
        for out in (one.ar_generate(ids, 12, attention_mask=mask)[0], one.generate(ids, max_new_tokens=12)):
            kept = whole.index(whole[3]) + 1
            assert out[0, 12:].tolist() == whole[:kept] + [7] * (out.shape[1] - 12 - kept)


@pytest.mark.parametrize("mode", MODES)
def test_streamers_and_stopping_criteria(model: Any, prompts: Any, mode: str) -> None:
    """A streamer gets the prompt, then every token; a criterion ends a sequence at the token at which it holds."""
    ids = prompts[0][:1]
    seen: list[int] = []

    class Contains(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            seen.append(input_ids.shape[1])
            return torch.isin(input_ids[:, 12:], stop).any(1)

    stop = torch.tensor([-1])
    settings = {"max_new_tokens": 15, "decoding_mode": mode, "block_length": 4}
    whole = model.generate(ids, **settings)
    assert whole.shape == (1, 27)
    stop, streamer = whole[0, 20:21], Tokens()
    criteria = StoppingCriteriaList([Contains()])
    answer = model.generate(
        ids, streamer=streamer, stopping_criteria=criteria, return_dict_in_generate=True, **settings
    )
    kept = whole[0, 12:].tolist().index(int(stop)) + 1
    assert answer.sequences.tolist() == whole[:, : 12 + kept].tolist()
    assert seen == list(range(13, 13 + kept))
    assert torch.equal(streamer.got[0], ids)
    assert torch.cat([one.flatten() for one in streamer.got[1:]]).tolist() == whole[0, 12 : 12 + kept].tolist()
    assert streamer.ended == 1


def test_more_tokens_than_fit_are_not_decoded(model: Any) -> None:
    """Servers ask for 1024 where nothing is said."""
    ids = torch.randint(6, 57, (2, 240), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :100] = 0
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=1024, decoding_mode="linear", block_length=4, eos_token_id=None
    )
    assert found.shape == (2, 256)


def test_sampling_in_every_mode(model: Any, prompts: Any) -> None:
    """From torch's global generator; sequences of one prompt differ."""
    ids, mask = prompts
    for mode in MODES:
        settings = {"decoding_mode": mode, "block_length": 4, "do_sample": True, "temperature": 1.5, "top_k": 40}

        def drawn(seed: int, settings: dict[str, Any] = settings) -> list[list[int]]:
            torch.manual_seed(seed)
            found = model.generate(ids, attention_mask=mask, max_new_tokens=8, num_return_sequences=2, **settings)
            return found[:, 12:].tolist()

        assert drawn(0) == drawn(0) != drawn(1)
        assert len({tuple(row) for row in drawn(0)}) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "num_beams = 3: not in decoding_mode 'linear'"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores = True: not in decoding_mode"),
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor: logits processors other than"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens = 3"),
        ({"decoding_mode": "fast"}, "decoding_mode: 'fast' is not one of ar, diffusion, linear, quadratic"),
        ({"decoding_mode": "diffusion", "diffusion_selection_policy": "leftmost"}, "diffusion_selection_policy"),
        ({"decoding_mode": "diffusion", "max_denoising_steps": 0}, "max_denoising_steps: 0 is not 1 or more"),
        ({"spelled_wrong": 1}, "spelled_wrong"),
    ],
)
def test_what_a_mode_does_not_have_is_refused_by_name(
    model: Any, prompts: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(prompts[0], max_new_tokens=4, **{"decoding_mode": "linear", **settings})


def test_denoising_steps_are_limited(model: Any, prompts: Any) -> None:
    """A block whose passes are used up is committed whole."""
    ids, calls = prompts[0][:1], []
    settings = {"decoding_mode": "diffusion", "block_length": 8, "diffusion_confidence_threshold": 1.0}
    handle = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        for steps, passes in ((1, 1), (3, 3), (7, 7), (None, 7)):
            calls.clear()
            model.generate(ids, max_new_tokens=8, eos_token_id=None, max_denoising_steps=steps, **settings)
            assert len(calls) == 1 + passes
    finally:
        handle.remove()


def test_padding_is_inferred_or_refused(model: Any, load: Any, prompts: Any, tmp_path: Path) -> None:
    """At the ends of rows, from the padding token; where that is an end token too, a batch needs an attention mask."""
    ids, mask = prompts
    for call in (model.ar_generate, model.diffusion_generate, model.linear_spec_generate):
        assert torch.equal(call(ids, 6)[0], call(ids, 6, attention_mask=mask)[0])
    assert torch.equal(
        model.generate(ids, max_new_tokens=6), model.generate(ids, attention_mask=mask, max_new_tokens=6)
    )
    inside = ids[:1].clone()
    inside[0, 5] = 0
    model.ar_generate(inside, 2)
    ambiguous = load(write_export(tmp_path / "model"))
    ambiguous.generation_config.pad_token_id = STOP
    padded = torch.where(mask.bool(), ids, STOP)
    for refused in (lambda: ambiguous.ar_generate(padded, 3), lambda: ambiguous.generate(padded, max_new_tokens=3)):
        with pytest.raises(ValueError, match="row 1 begins or ends with the padding token 58, which is an end token"):
            refused()
    # One prompt has no padding: its last token ends a turn.
    prompt = torch.tensor([[7, 8, STOP]])
    assert torch.equal(ambiguous.ar_generate(prompt, 4)[0], model.ar_generate(prompt, 4)[0])
