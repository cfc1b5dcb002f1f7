"""The three methods as users call them: what they return, what they count, and the drafter adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_exports import STOP, write_adapter, write_export
from tiny_shape import MASK
from tolerance import assert_close_to_rounding, forward_additions


def test_new_tokens_follow_the_input_as_it_came(model: Any, prompts: Any) -> None:
    ids, mask = prompts
    out, _ = model.ar_generate(ids, 9, attention_mask=mask)
    assert out.shape == (3, 12 + 9)
    assert torch.equal(out[:, :12], ids)
    for row in range(3):
        alone, _ = model.ar_generate(ids[row, mask[row].bool()][None], 9)
        assert torch.equal(out[row, 12:], alone[0, -9:])


def test_what_a_tokenizer_returns_can_be_passed_on(model: Any, prompts: Any) -> None:
    ids, mask = prompts
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    assert torch.equal(model(**batch).logits, model(ids, mask).logits)
    for call in (model.ar_generate, model.diffusion_generate, model.linear_spec_generate):
        assert torch.equal(call(**batch, max_new_tokens=3)[0], call(ids, 3, attention_mask=mask)[0])
    with pytest.raises(TypeError, match="give prompt_ids, also named input_ids, not twice"):
        model.ar_generate(ids, 3, input_ids=ids)
    with pytest.raises(TypeError, match="num_beams"):
        model.ar_generate(ids, 3, num_beams=4)


def test_rows_that_stop_are_padded(model: Any, prompts: Any) -> None:
    ids, mask = prompts
    whole, _ = model.ar_generate(ids, 12, attention_mask=mask, eos_token_id=())
    stop = int(whole[0, 12 + 4])
    for call in (model.ar_generate, model.linear_spec_generate):
        out, _ = call(ids, 12, attention_mask=mask, eos_token_id=stop)
        new = whole[0, 12:].tolist()
        kept = new.index(stop) + 1
        expected = new[:kept] + [0] * (out.shape[1] - 12 - kept)
        assert out[0, 12:].tolist() == expected


def test_stop_tokens_come_from_the_generation_config(model: Any, load: Any, tmp_path: Path) -> None:
    """Not from the config, whose `eos_token_id` is another one here, unless the generation config has none."""
    assert model.stop_tokens() == (STOP,)
    directory = write_export(tmp_path / "model")
    for text in ('{"pad_token_id": 0}', '{"eos_token_id": []}'):
        (directory / "generation_config.json").write_text(text)
        assert load(directory).stop_tokens() == (2,)
    (directory / "generation_config.json").unlink()
    assert load(directory).stop_tokens() == (2,)


def test_forward_calls_are_counted_as_the_released_class_does(model: Any, prompts: Any) -> None:
    """One per token in AR; the write of the last block, which is not run here, in diffusion; else with the prefill."""
    ids, mask = prompts
    calls = []
    handle = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        for call in (model.ar_generate, model.generate, model.linear_spec_generate, model.quadratic_spec_generate):
            calls.clear()
            settings = {} if call == model.ar_generate else {"block_length": 4}
            _, nfe = call(ids, 9, attention_mask=mask, eos_token_id=(), **settings)
            prefill, last_write = 1, 1
            if call == model.ar_generate:
                assert nfe == 9 == len(calls)
            elif call == model.generate:
                assert nfe == len(calls) - prefill + last_write
            else:
                assert nfe == len(calls)
    finally:
        handle.remove()


def test_threshold_or_steps(model: Any, prompts: Any) -> None:
    ids, mask = prompts
    settings = {"max_new_tokens": 16, "block_length": 8, "attention_mask": mask, "eos_token_id": ()}
    # A pass and a write for each block.
    assert model.generate(ids, threshold=0.0, **settings)[1] == 2 + 2
    # Two blocks of 7 masks: 6 steps are 3 passes each, 100 are as many as there are masks.
    assert model.generate(ids, steps=6, **settings)[1] == 6 + 2
    assert model.generate(ids, steps=100, **settings)[1] == 14 + 2
    default = model.generate(ids, **settings)
    assert default[1] == 14 + 2, "one token per pass"
    assert torch.equal(default[0], model.generate(ids, steps=100, **settings)[0])
    with pytest.raises(ValueError, match="steps: give either a threshold or a number of steps"):
        model.generate(ids, threshold=0.5, steps=3, **settings)
    with pytest.raises(ValueError, match=r"threshold: 1\.5 is not in \[0, 1\]"):
        model.generate(ids, threshold=1.5, **settings)
    with pytest.raises(ValueError, match="steps: 0 is not 1 or more"):
        model.generate(ids, steps=0, **settings)


def test_all_steps_are_made(model: Any, prompts: Any) -> None:
    """What does not divide evenly goes to the first blocks, after prompts of any length."""
    ids, mask = prompts

    def passes(steps: int, tokens: int) -> int:
        _, nfe = model.generate(ids, tokens, 8, steps=steps, attention_mask=mask, eos_token_id=())
        return nfe - (tokens + 7) // 8  # every block is written by a forward

    for steps in (4, 5, 10, 11, 28):
        assert passes(steps, 32) == steps
    # The third block is its first token alone, and needs no pass.
    assert passes(7, 17) == 7
    with pytest.raises(ValueError, match="steps: 3 is fewer than the 4 blocks"):
        passes(3, 32)
    for call in ({"steps": 4}, {}):
        with pytest.raises(ValueError, match="max_new_tokens: 0 is not 1 or more"):
            model.generate(ids, 0, attention_mask=mask, **call)


def test_the_adapter_drafts_and_is_gone(load: Any, prompts: Any) -> None:
    ids, mask = prompts
    model = load().train()
    names, logits = set(model.state_dict()), model(ids, mask).logits
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    seen = []
    original = model.encoder.layers[0].self_attn.o_proj
    settings = {"mode": "linear", "max_new_tokens": 20, "block_length": 6, "attention_mask": mask}
    handle = model.encoder.register_forward_hook(lambda *_: seen.append(model.encoder.layers[0].self_attn.o_proj))
    drafted = model.decode(ids, adapter=True, **settings)
    handle.remove()
    plain = model.decode(ids, adapter=False, **settings)
    assert drafted.token_ids == plain.token_ids
    assert drafted.accepted != plain.accepted
    # Prefill, then draft and verify in turn; with one token left there is nothing to draft.
    plain_forwards = [one is original for one in seen]
    assert plain_forwards[:9] == [True] + [False, True] * 4
    assert plain_forwards[-1]
    assert model.encoder.layers[0].self_attn.o_proj is original
    assert set(model.state_dict()) == names
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert torch.equal(model(ids, mask).logits, logits)
    assert model.training


def test_the_adapter_is_the_low_rank_product(load: Any, export: Path, prompts: Any) -> None:
    """W + (alpha / r) B A, computed by hand."""
    from safetensors.torch import load_file

    tensors = load_file(export / "linear_spec_lora" / "adapter_model.safetensors")
    ids, mask = prompts
    model, merged = load(), load()
    with torch.no_grad():
        for layer in range(2):
            at = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora_"
            merged.encoder.layers[layer].self_attn.o_proj.weight += (
                4 * tensors[f"{at}B.weight"] @ tensors[f"{at}A.weight"]
            )
        with model.drafter().installed():
            found = model(ids, mask).logits
        assert_close_to_rounding(found, merged(ids, mask).logits, forward_additions(model.config, ids.shape[1]))


def test_the_adapter_goes_where_the_model_goes(load: Any, prompts: Any) -> None:
    """Loaded before the model is moved, it drafts as if it had been loaded after."""
    ids, mask = prompts
    settings = {"mode": "linear", "max_new_tokens": 12, "block_length": 4, "attention_mask": mask, "adapter": True}
    early, late = load(), load()
    assert early.drafter() is not None
    early, late = early.to(torch.float64), late.to(torch.float64)
    assert early.decode(ids, **settings) == late.decode(ids, **settings)
    with early.drafter().installed():
        assert {tensor.dtype for tensor in early.encoder.layers[1].self_attn.o_proj.parameters()} == {torch.float64}


def test_adapters_that_do_not_fit(load: Any, tmp_path: Path, prompts: Any) -> None:
    ids, _ = prompts
    model = load(write_export(tmp_path / "model"))
    assert model.drafter() is None
    with pytest.raises(ValueError, match="adapter: this model has no drafter adapter"):
        model.linear_spec_generate(ids, 3, adapter=True)
    with pytest.raises(ValueError, match="not a LoRA on o_proj alone"):
        model.load_drafter(write_adapter(tmp_path / "wrong_target", target="q_proj"))
    with pytest.raises(ValueError, match="does not fit this model"):
        model.load_drafter(write_adapter(tmp_path / "wrong_rank", rank=3))
    with pytest.raises(ValueError, match="does not fit this model"):
        model.load_drafter(write_adapter(tmp_path / "wrong_depth", layers=1))
    assert model.linear_spec_generate(ids, 3, 2, attention_mask=prompts[1])[0].shape == (3, 15)


def test_seeds(model: Any, prompts: Any) -> None:
    ids, mask = prompts

    def sampled(**settings: Any) -> list[list[int]]:
        return model.linear_spec_generate(ids, 8, 4, attention_mask=mask, temperature=1.5, **settings)[0].tolist()

    assert sampled(seed=3) == sampled(seed=3) != sampled(seed=4)
    assert sampled(seed=[3, 4, 5]) == sampled(seed=3)
    torch.manual_seed(0)
    first = sampled()
    assert first != sampled()
    torch.manual_seed(0)
    assert first == sampled()


def test_a_greedy_call_leaves_the_global_generator_alone(model: Any, prompts: Any) -> None:
    state = torch.get_rng_state()
    model.ar_generate(prompts[0], 3, attention_mask=prompts[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([[7, MASK]], {}, "prompt 0 contains the mask token"),
        ([[7] * 256], {}, "prompt 0 has 256 tokens"),
        ([[7, 8]], {"attention_mask": [[0, 0]]}, "prompt 0 is empty"),
        ([[7, 8, 9]], {"attention_mask": [[1, 0, 1]]}, "attention_mask: padding inside a prompt"),
        ([[7, 8]], {"attention_mask": [[1]]}, "attention_mask: shape"),
        ([7, 8], {}, "input_ids: shape"),
        ([[7, 8]], {"max_new_tokens": 0}, "max_new_tokens: 0 is not 1 or more"),
        ([[7, 8]], {"max_new_tokens": 255}, "255 do not fit into the context of 256 after the 2 tokens of prompt 0"),
        ([[7, 8]], {"block_length": 0}, "block_length: 0 is not 1 or more"),
        ([[7, 8]], {"stop_strings": "x"}, "stop_strings: they need"),
    ],
)
def test_bad_calls(model: Any, ids: Any, settings: dict, message: str) -> None:
    if "attention_mask" in settings:
        settings = {**settings, "attention_mask": torch.tensor(settings["attention_mask"])}
    for call in (model.diffusion_generate, model.linear_spec_generate):
        with pytest.raises(ValueError, match=message):
            call(torch.tensor(ids), **settings)
