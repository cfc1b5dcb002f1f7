"""Exports of a trained run: the same logits everywhere, and the model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from converted_models import causal_logits, config_of, load_model
from refusals import refused
from tiny_runs import newest_checkpoint
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor
from trained_runs import ALPHA, AR_WEIGHT, ORIGINAL_LENGTH

from checkpoint_convert.cli import main
from checkpoint_convert.exporting import export_checkpoint
from nld_train.revision import SOFTWARE, software
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest

LENGTH = 4 * ORIGINAL_LENGTH
TOKENS = torch.randint(4, 260, (1, LENGTH), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits_of(model_class: Any, directory: Path) -> Tensor:
    model, info = model_class.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()(TOKENS).logits[0]


@pytest.mark.usefixtures("groups")
def test_logits_of_a_trained_model_agree_everywhere(trained: Path, exports: dict[str, Path]) -> None:
    from transformers import Ministral3ForCausalLM

    from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

    checkpoint = newest_checkpoint(trained)
    config = config_of(checkpoint)
    (model,) = load_model(config, checkpoint)
    expected = causal_logits(config, model, TOKENS)
    # Trained, and with text that matters: neither near 0 nor the same everywhere.
    assert expected.std() > 0.3
    assert expected.std(dim=0).mean() > 0.1
    assert LENGTH > 2 * ORIGINAL_LENGTH == 2 * config.model.rope_parameters.original_max_position_embeddings
    for model_class, directory in (
        (NemotronLabsDiffusionModel, exports["nld"]),
        (Ministral3ForCausalLM, exports["ministral3"]),
    ):
        found = logits_of(model_class, directory)
        assert_close_to_rounding(found, expected, forward_additions(config.model, LENGTH))


def test_verify_agrees_on_a_run_and_its_exports(trained: Path, exports: dict[str, Path]) -> None:
    for directory in exports.values():
        assert main(["verify", str(trained), str(directory)]) == 0


def test_the_config_has_the_weights_of_both_terms(exports: dict[str, Path]) -> None:
    config = json.loads((exports["nld"] / "config.json").read_text())
    assert (config["ar_loss_weight"], config["dlm_loss_weight"]) == (AR_WEIGHT, ALPHA)


def test_the_model_card_describes_the_run(trained: Path, exports: dict[str, Path]) -> None:
    card = (exports["nld"] / "README.md").read_text()
    manifest = json.loads((trained.parent / "data" / "sentences.manifest.json").read_text())
    steps = 8 * 48 * 20
    assert f"| ar | {steps:,} of {steps:,} | 20 | 0 | global | 0.01 -> " in card
    assert f"| joint | {steps:,} of {steps:,} | 20 | {ALPHA} (AR loss x {AR_WEIGHT}) | global | 0.01 -> " in card
    assert "step 40 of run `tiny`" in card
    assert "Starting weights: random" in card
    assert f"`sentences` (weight 1), {manifest['documents']} documents, {manifest['tokens']:,} tokens" in card
    assert f"fingerprint `{manifest['fingerprint'][:12]}`" in card
    assert f"version {software()['version']}, commit {software()['git_revision']}" in card


def test_the_card_names_the_code_of_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Not that of the last process of the run, nor that of the export."""
    shutil.copytree(newest_checkpoint(trained), tmp_path / "checkpoint")
    for noted, expected in (
        ({"version": "0.0.7", "git_revision": "abc"}, "version 0.0.7, commit abc"),
        ({"version": "0.0.7", "git_revision": "unknown"}, "version 0.0.7, commit unknown"),
        (None, "version unknown, commit unknown"),
    ):
        if noted is None:
            (tmp_path / "checkpoint" / SOFTWARE).unlink()
        else:
            (tmp_path / "checkpoint" / SOFTWARE).write_text(json.dumps(noted))
        (tmp_path / "checkpoint" / MANIFEST).unlink()
        write_manifest(tmp_path / "checkpoint", {})
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", "nld", report=lambda _: None)
        assert f"- Trained by nld-train, {expected}" in (tmp_path / "out" / "README.md").read_text()
        shutil.rmtree(tmp_path / "out")


def test_every_checkpoint_records_its_code(trained: Path) -> None:
    checkpoint = newest_checkpoint(trained)
    assert json.loads((checkpoint / SOFTWARE).read_text()) == software()
    assert SOFTWARE in json.loads((checkpoint / "manifest.json").read_text())["files"]


def test_the_tokenizer_of_an_export_loads_without_a_question(
    exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`transformers` may ask on the standard input whether to run the model's code; a tokenizer needs none."""
    from nld_train.data.tokenizer import load_tokenizer, tokenizer_hash

    questions: list[object] = []  # an error here would not show: it counts as an answer
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    for directory in exports.values():
        tokenizer = load_tokenizer(str(directory))
        assert tokenizer.decode(tokenizer("the old tree").input_ids) == "the old tree"
    assert questions == []
    assert tokenizer_hash(str(exports["nld"])) == tokenizer_hash(str(exports["ministral3"]))


def test_data_is_prepared_with_the_tokenizer_of_an_export(exports: dict[str, Path], tmp_path: Path) -> None:
    from nld_train.commands import data as cli

    (tmp_path / "text.txt").write_text("the old tree\n")
    arguments = ["prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "data"), "--workers", "1"]
    assert cli.main([*arguments, "--tokenizer", str(exports["nld"])]) == 0
    assert (tmp_path / "data" / "text.bin").stat().st_size == 2 * len("the old tree\n" + "|")


def test_an_export_gets_the_tokenizer_of_its_training(
    trained: Path, exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes; another one of as many ids is refused, a copy is taken."""
    from nld_train.data.tokenizer import save_tokenizer, train_bpe

    save_tokenizer(train_bpe(["other"], 260), str(tmp_path / "other"))
    arguments = ["export", str(trained), str(tmp_path / "out"), "--format", "nld", "--tokenizer"]
    message = refused(capsys, [*arguments, str(tmp_path / "other")], tmp_path / "out")
    assert message.startswith(f"error: --tokenizer: {tmp_path}/other is another tokenizer")
    assert main([*arguments, str(exports["nld"])]) == 0
