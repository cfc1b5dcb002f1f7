"""PEFT on an export: the drafter however it is attached, and adapters of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from tiny_exports import write_export
from tolerance import assert_close_to_rounding, forward_additions

NEW, BLOCK = 20, 6


@pytest.fixture
def plain(load: Any, tmp_path: Path) -> Any:
    """A model without an adapter in its directory."""
    return load(write_export(tmp_path / "plain"))


def from_pretrained(model: Any, export: Path) -> Any:
    return PeftModel.from_pretrained(model, export, subfolder="linear_spec_lora").model


def from_its_folder(model: Any, export: Path) -> Any:
    return PeftModel.from_pretrained(model, export / "linear_spec_lora", adapter_name="drafter").model


def with_a_task(model: Any, export: Path) -> Any:
    """`get_peft_model` and the adapter's tensors."""
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["o_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config)
    set_peft_model_state_dict(wrapped, load_file(export / "linear_spec_lora" / "adapter_model.safetensors"))
    return wrapped.base_model.model


def through_transformers(model: Any, export: Path) -> Any:
    model.load_adapter(str(export / "linear_spec_lora"), adapter_name="drafter")
    return model


def injected(model: Any, export: Path) -> Any:
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["o_proj"])
    changed = inject_adapter_in_model(config, model)
    set_peft_model_state_dict(changed, load_file(export / "linear_spec_lora" / "adapter_model.safetensors"))
    return changed


def merged_for_now(model: Any, export: Path) -> Any:
    wrapped = PeftModel.from_pretrained(model, export, subfolder="linear_spec_lora")
    wrapped.merge_adapter()
    return wrapped.model


def as_a_second_one(model: Any, export: Path) -> Any:
    """Beside an adapter of one's own that is not active."""
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="own")
    wrapped.load_adapter(export, "drafter", subfolder="linear_spec_lora")
    wrapped.set_adapter("drafter")
    return wrapped.model


@pytest.mark.parametrize(
    "attach",
    [
        from_pretrained,
        from_its_folder,
        with_a_task,
        through_transformers,
        injected,
        merged_for_now,
        as_a_second_one,
    ],
)
def test_an_attached_drafter_drafts_and_does_not_verify(
    plain: Any, model: Any, export: Path, prompts: Any, attach: Any
) -> None:
    """Output is that of AR without it; drafts are those of the export's own adapter; a plain forward has it."""
    ids, mask = prompts
    expected = plain.ar_generate(ids, NEW, attention_mask=mask)[0]
    settings = {"mode": "linear", "max_new_tokens": NEW, "block_length": BLOCK, "attention_mask": mask}
    drafted, undrafted = (model.decode(ids, adapter=adapter, **settings) for adapter in (True, False))
    assert drafted.accepted != undrafted.accepted
    with model.drafter().installed():
        adapted = model(ids, mask).logits
    attached = attach(plain, export)
    trained = {name: parameter.requires_grad for name, parameter in attached.named_parameters()}
    for _ in range(2):
        assert torch.equal(attached.linear_spec_generate(ids, NEW, BLOCK, attention_mask=mask)[0], expected)
        assert attached.decode(ids, adapter=True, **settings).accepted == drafted.accepted
        assert attached.decode(ids, adapter=False, **settings).accepted == undrafted.accepted
        assert torch.equal(attached.ar_generate(ids, NEW, attention_mask=mask)[0], expected)
        generated = {"attention_mask": mask, "max_new_tokens": NEW}
        assert torch.equal(attached.generate(ids, **generated), expected)
        assert torch.equal(attached.generate(ids, decoding_mode="linear", block_length=BLOCK, **generated), expected)
        additions = 2 * forward_additions(attached.config, ids.shape[1])
        assert_close_to_rounding(attached(ids, mask).logits, adapted, additions)
    assert {name: parameter.requires_grad for name, parameter in attached.named_parameters()} == trained


def test_a_disabled_drafter_does_not_draft(plain: Any, export: Path, prompts: Any) -> None:
    ids, mask = prompts
    settings = {"mode": "linear", "max_new_tokens": NEW, "block_length": BLOCK, "attention_mask": mask}
    expected = plain.decode(ids, **settings)
    wrapped = PeftModel.from_pretrained(plain, export, subfolder="linear_spec_lora")
    with wrapped.disable_adapter():
        assert wrapped.model.decode(ids, adapter=None, **settings) == expected
    assert wrapped.model.decode(ids, adapter=None, **settings).accepted != expected.accepted


def test_an_adapter_of_ones_own_is_on_everywhere(load: Any, prompts: Any, tmp_path: Path) -> None:
    """Trained on all projections, beside the export's drafter: each mode decodes with it, and merging keeps it."""
    ids, mask = prompts
    model = load()
    before = model.ar_generate(ids, NEW, attention_mask=mask)[0]
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    batch = {"input_ids": ids, "attention_mask": mask}
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=0.05)
    torch.manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        wrapped(**batch, labels=labels).loss.backward()
        optimizer.step()
    wrapped.eval()
    tuned = wrapped.generate(**batch, max_new_tokens=NEW)
    assert not torch.equal(tuned, before)
    own = wrapped.base_model.model
    assert torch.equal(own.ar_generate(**batch, max_new_tokens=NEW)[0], tuned)
    assert torch.equal(own.linear_spec_generate(**batch, max_new_tokens=NEW, block_length=BLOCK)[0], tuned)
    with pytest.raises(ValueError, match="adapter: this model has no drafter adapter"):
        own.linear_spec_generate(**batch, adapter=True)
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path)
    for one in (merged, load(tmp_path)):
        assert_close_to_rounding(one(**batch).logits, merged(**batch).logits, 0)
        assert torch.equal(one.linear_spec_generate(**batch, max_new_tokens=NEW, block_length=BLOCK)[0], tuned)
