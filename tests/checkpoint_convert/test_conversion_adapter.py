"""The drafter adapter of a checkpoint: copied, or refused where its shapes are not the model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hugging_face_sources import TEXT, named, write_source
from refusals import refused
from safetensors.torch import load_file, save_file
from tolerance import assert_close_to_rounding, forward_additions

from checkpoint_convert.cli import main
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from nld_train.model.adapter_files import AdapterShape, tensor_names, write_adapter


def write_drafter(directory: Path, **changes: int) -> Path:
    """A drafter adapter for the small sources, or for a model of other sizes."""
    sizes = {"layers": 2, "width": 120, "hidden": 40, "rank": 3, "said_rank": 3} | changes
    rank, tensors = sizes["rank"], {}
    for layer in range(sizes["layers"]):
        down, up = tensor_names(layer)
        tensors[down], tensors[up] = torch.ones(rank, sizes["width"]), torch.ones(sizes["hidden"], rank)
    write_adapter(directory, AdapterShape(sizes["said_rank"], 12), tensors)
    return directory


OTHER_ADAPTERS = {
    "another rank": ({"said_rank": 4}, "rank 4"),
    "fewer layers": ({"layers": 1}, "layers.1.self_attn.o_proj"),
    "more layers": ({"layers": 3}, "layers.2.self_attn.o_proj"),
    "another width": ({"hidden": 48}, "layers.0.self_attn.o_proj.lora_B"),
    "other heads": ({"width": 128}, "layers.0.self_attn.o_proj.lora_A"),
}


@pytest.mark.parametrize("kind", OTHER_ADAPTERS)
def test_an_adapter_of_another_model_or_rank(
    kind: str, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected_text = OTHER_ADAPTERS[kind]
    adapter, out = write_drafter(tmp_path / "adapter", **changes), tmp_path / "out"
    message = refused(capsys, ["export", str(imported), str(out), "--format", "nld", "--adapter", str(adapter)], out)
    assert expected_text in message
    assert str(adapter) in message
    write_source(tmp_path / "model", named("nld"))
    write_drafter(tmp_path / "model" / "linear_spec_lora", **changes)
    assert expected_text in refused(capsys, ["import", str(tmp_path / "model"), str(out)], out)


@torch.no_grad()
def test_plain_peft_loads_the_adapter_of_an_export(tmp_path: Path) -> None:
    """Its logits are those of a drafting pass here."""
    from peft import PeftModel

    from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

    write_source(tmp_path / "model", named("nld"))
    write_drafter(tmp_path / "model" / "linear_spec_lora")
    import_checkpoint(tmp_path / "model", tmp_path / "imported", report=lambda _: None)
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "nld", report=lambda _: None)
    plain, model = (NemotronLabsDiffusionModel.from_pretrained(tmp_path / "out", dtype=torch.float32) for _ in "ab")
    ids = torch.arange(20)[None]
    before = plain(ids).logits
    with plain.drafter().installed():
        expected = plain(ids).logits
    found = PeftModel.from_pretrained(model, tmp_path / "out" / "linear_spec_lora").eval()(ids).logits
    assert_close_to_rounding(found, expected, forward_additions(TEXT, 20))
    assert (expected - before).abs().max() > 0.1


def test_an_adapter_is_copied_by_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "model", named("nld"))
    adapter = write_drafter(tmp_path / "model" / "linear_spec_lora")
    import_checkpoint(tmp_path / "model", tmp_path / "imported", report=lambda _: None)
    export = ["export", str(tmp_path / "imported")]
    assert main([*export, str(tmp_path / "out"), "--format", "nld"]) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / "linear_spec_lora" / name).read_bytes() == (adapter / name).read_bytes()
    assert main([*export, str(tmp_path / "plain"), "--format", "ministral3"]) == 0
    assert not (tmp_path / "plain" / "linear_spec_lora").exists()
    capsys.readouterr()
    again = tmp_path / "again"
    plain = [*export, str(again), "--format", "ministral3", "--adapter", str(adapter)]
    assert "only --format nld" in refused(capsys, plain, again)
    none = [*export, str(again), "--format", "nld", "--adapter", str(tmp_path)]
    assert "holds no drafter adapter" in refused(capsys, none, again)


def test_an_adapter_with_nan_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its model, or named beside a sound one."""
    write_source(tmp_path / "model", named("nld"))
    import_checkpoint(tmp_path / "model", tmp_path / "imported", report=lambda _: None)
    adapter = write_drafter(tmp_path / "model" / "linear_spec_lora")
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    for words in (
        ["import", str(tmp_path / "model"), str(out)],
        ["export", str(tmp_path / "imported"), str(out), "--format", "nld", "--adapter", str(adapter)],
    ):
        assert "contains NaN or infinity; name another adapter" in refused(capsys, words, out)
