"""A stage that trains a LoRA: what it changes, what it writes, how it is continued, merged and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_equality import assert_same_run
from tiny_runs import STEP_TOKENS, newest_checkpoint, records_of, saved_tensors, train_here
from training_runs import Train

from checkpoint_convert.cli import main as convert
from checkpoint_convert.mapping import part_shape, tensors
from checkpoint_convert.megatron import MegatronWeights
from nld_train.config.compose import compose_config
from nld_train.config.schema import LORA_TARGETS
from nld_train.config.validate import validate
from nld_train.errors import UserError
from nld_train.model.adapter_files import LORA_DIRECTORY, AdapterShape, read_shape, read_tensors, tensor_names

AR, JOINT, DRAFTER = 2, 3, 1
STAGES = (
    "stages=[quickstart,drafter]",
    f"stages.ar.tokens={AR * STEP_TOKENS}",
    f"stages.joint.tokens={JOINT * STEP_TOKENS}",
    f"stages.drafter.tokens={DRAFTER * STEP_TOKENS}",
    "stages.joint.schedule.learning_rate=0.05",
    "stages.joint.schedule.final_learning_rate=0.01",
    "stages.joint.lora={rank: 3, lora_alpha: 6}",
    "stages.drafter.adapter.rank=2",
    "stages.drafter.adapter.block_size=5",
    "checkpoint.every=1",
    "checkpoint.keep_last=10",
)
BEFORE, AFTER, END = AR, AR + JOINT, AR + JOINT + DRAFTER


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in saved_tensors(checkpoint).items() if not name.startswith("optimizer")}


@pytest.fixture(scope="session")
def tuned(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AR, a joint stage with a LoRA, and a drafter stage, never stopped."""
    return train(tmp_path_factory.mktemp("tuned"), *STAGES)


def test_the_weights_keep_every_bit_and_the_lora_learns(tuned: Path) -> None:
    before, after = (weights_of(checkpoint_of(tuned, step)) for step in (BEFORE, AFTER))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    trained = {name: tensor for name, tensor in after.items() if name not in before}
    assert len(trained) == 2 * len(LORA_TARGETS)
    assert all(tensor.any() for tensor in trained.values())
    # Nothing else has optimizer state.
    state = {name for name in saved_tensors(checkpoint_of(tuned, AFTER)) if name.startswith("optimizer.state.exp_avg.")}
    assert {name.removeprefix("optimizer.state.exp_avg.") for name in state} == trained.keys()
    records = [record for record in records_of(tuned) if record["stage"] == "joint"]
    assert all(record["diffusion_loss"] > 0 and record["grad_norm"] > 0 for record in records)


def test_the_checkpoint_has_it_in_pefts_layout(tuned: Path) -> None:
    checkpoint = checkpoint_of(tuned, AFTER)
    folder, saved = checkpoint / LORA_DIRECTORY, weights_of(checkpoint)
    model = MegatronWeights(checkpoint).model
    assert read_shape(folder, model, drafter=False) == AdapterShape(3, 6, LORA_TARGETS)
    found = read_tensors(folder)
    for layer in range(model.num_hidden_layers):
        for target in LORA_TARGETS:
            module = "mlp" if target in LORA_TARGETS[4:] else "self_attention"
            for name, key in zip(tensor_names(layer, target), ("down", "up"), strict=True):
                assert torch.equal(found[name], saved[f"decoder.layers.{module}.lora.{target}.{key}.weight"][layer])
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {f"{LORA_DIRECTORY}/adapter_config.json", f"{LORA_DIRECTORY}/adapter_model.safetensors"} <= listed.keys()


def test_the_next_stage_begins_with_merged_weights(tuned: Path) -> None:
    """What reading the checkpoint adds up is what the run went on with: the drafter stage changes no weight."""
    merged, after = (MegatronWeights(checkpoint_of(tuned, step)) for step in (AFTER, END))
    plain = MegatronWeights(checkpoint_of(tuned, AFTER), merge_lora=False)
    assert not (checkpoint_of(tuned, END) / LORA_DIRECTORY).exists()
    changed = set()
    for tensor in tensors(merged.model):
        rows = part_shape(tensor.part, merged.model)[0]
        one, other, without = (weights.rows(tensor.name, 0, rows) for weights in (merged, after, plain))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        if not torch.equal(other, without):
            changed.add(tensor.name.split(".")[-2])
    assert changed == set(LORA_TARGETS)


def test_stopping_in_the_stage_and_at_its_end_changes_nothing(train: Train, tuned: Path, tmp_path: Path) -> None:
    for stop in (BEFORE + 1, AFTER):
        train(tmp_path, *STAGES, f"run.max_steps={stop}")
        assert len(records_of(tmp_path)) == stop
    assert_same_run(train(tmp_path, *STAGES), tuned)


def test_a_run_that_starts_from_it_starts_from_merged_weights(
    settings: tuple[str, ...], tuned: Path, tmp_path: Path
) -> None:
    kept = [word for word in (*settings, *STAGES) if not word.startswith(("stages.ar", "stages.joint", "stages="))]
    train_here(tmp_path, "stages=drafter", *kept, f"init.checkpoint={checkpoint_of(tuned, AFTER)}")
    found, expected = weights_of(newest_checkpoint(tmp_path)), weights_of(newest_checkpoint(tuned))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert "adapter" in name or torch.equal(tensor, found[name]), name


@torch.no_grad()
def test_exports_are_merged_or_peft_loads_the_lora_onto_them(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

    checkpoint, ids = str(checkpoint_of(tuned, AFTER)), torch.arange(20)[None] + 4
    logits = {}
    for kind, loader in (("nld", NemotronLabsDiffusionModel), ("ministral3", AutoModelForCausalLM)):
        for folder, words in (("merged", ()), ("kept", ("--keep-lora",))):
            out = tmp_path / kind / folder
            out.parent.mkdir(exist_ok=True)
            assert convert(["export", checkpoint, str(out), "--format", kind, *words]) == 0
        merged, kept = (loader.from_pretrained(tmp_path / kind / name) for name in ("merged", "kept"))
        found = kept(ids).logits
        logits[kind] = merged(ids).logits
        kept.disable_adapters()
        plain = kept(ids).logits
        torch.testing.assert_close(found, logits[kind], atol=1e-5, rtol=1e-5)
        assert (plain - found).abs().max() > 0.01
    cards = {name: (tmp_path / "nld" / name / "README.md").read_text() for name in ("merged", "kept")}
    assert all("| 0.3 (LoRA of rank 3) |" in card for card in cards.values())
    assert [name for name, card in cards.items() if "is **not added** to the weights" in card] == ["kept"]
    torch.testing.assert_close(logits["nld"], logits["ministral3"], atol=1e-5, rtol=1e-5)
    assert "--keep-lora exports it beside them" in capsys.readouterr().out
    assert convert(["export", str(tuned), str(tmp_path / "none"), "--format", "nld", "--keep-lora"]) == 2
    assert "--keep-lora: " in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@torch.no_grad()
def test_the_lora_of_an_export_is_never_left_out(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding and the import add it to the weights, and without PEFT the exported model refuses to be loaded."""
    from checkpoint_convert.hf_package import modeling_nemotron_labs_diffusion as module
    from checkpoint_convert.hugging_face import HuggingFaceWeights
    from checkpoint_convert.open_export import load_export

    checkpoint, ids = str(checkpoint_of(tuned, AFTER)), torch.arange(20)[None] + 4
    for folder, words in (("merged", ()), ("kept", ("--keep-lora",))):
        assert convert(["export", checkpoint, str(tmp_path / folder), "--format", "nld", *words]) == 0
    merged, kept = (
        load_export(HuggingFaceWeights(tmp_path / name), torch.device("cpu"))(ids).logits for name in ("merged", "kept")
    )
    torch.testing.assert_close(kept, merged, atol=1e-5, rtol=1e-5)
    assert convert(["import", str(tmp_path / "kept"), str(tmp_path / "imported")]) == 0
    assert "the LoRA beside the weights of" in capsys.readouterr().out
    assert convert(["verify", str(tmp_path / "merged"), str(tmp_path / "imported")]) == 0
    # As exports of earlier versions had it.
    (tmp_path / "kept" / LORA_DIRECTORY).mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "kept" / name).rename(tmp_path / "kept" / LORA_DIRECTORY / name)
    earlier = load_export(HuggingFaceWeights(tmp_path / "kept"), torch.device("cpu"))(ids).logits
    assert torch.equal(earlier, kept)
    (tmp_path / "kept" / LORA_DIRECTORY / "adapter_config.json").rename(tmp_path / "kept" / "adapter_config.json")
    monkeypatch.setattr(module, "is_peft_available", lambda: False)
    with pytest.raises(ImportError, match=r"the LoRA of .* needs the package peft"):
        module.NemotronLabsDiffusionModel.from_pretrained(tmp_path / "kept")
    module.NemotronLabsDiffusionModel.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("stages.ar.lora={rank: 0, lora_alpha: 1}",), "stages.ar.lora.rank=0: must be at least 1"),
        (("stages.ar.lora={rank: 2, lora_alpha: 0}",), "stages.ar.lora.lora_alpha=0.0: must be a number above 0"),
        (("stages.ar.lora={rank: 2, lora_alpha: 4, targets: []}",), "stages.ar.lora.targets=[]: must name at least"),
        (
            ("stages.ar.lora={rank: 2, lora_alpha: 4, targets: [q_proj, q_proj]}",),
            "stages.ar.lora.targets=[q_proj,q_proj]: must name each layer only once",
        ),
        (
            ("stages.ar.lora={rank: 2, lora_alpha: 4, targets: [lm_head]}",),
            "stages.ar.lora.targets[0]='lm_head': must be one of q_proj",
        ),
        (
            ("stages.ar.lora={rank: 2, lora_alpha: 4}", "execution.compile=default"),
            "execution.compile=default: must be none: stage 'ar' has a LoRA",
        ),
        (("stages=drafter", "+stages.drafter.lora={rank: 2, lora_alpha: 4}"), "stages.drafter.lora={rank: 2, ...}: "),
    ],
)
def test_impossible_settings(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(compose_config([*overrides, "run.dry=true"]), 1)
    assert str(refused.value).startswith(said)
