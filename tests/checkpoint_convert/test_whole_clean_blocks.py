"""A model whose clean tokens saw their whole block in training: its run, its export, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from naive_decoding import Reader, at_least, diffusion
from refusals import refused
from shared import shared_folder
from tiny_runs import records_of
from trained_runs import BLOCK_SIZE, train_on

from checkpoint_convert.cli import main
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.commands import decode as decode_command
from nld_train.decoding import DecodeOptions, Threshold, decode
from nld_train.decoding.clean_stream import CleanStream
from nld_train.decoding.load import find_source

pytestmark = pytest.mark.long

ABLATION = ("diffusion.clean=block", "stages.joint.ar_weight=0", "evaluation.modes=[diffusion]")
DECODES = ("evaluation.every=1", "evaluation.prompts=2", "evaluation.prompt_tokens=8", "evaluation.max_new_tokens=9")
PROMPTS = [[72, 101, 110], list(range(60, 77)), [40]]
LIMIT, THRESHOLD = 19, 0.2


@pytest.fixture(scope="session")
def ablated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the joint stage from the checkpoint of both stages, and its export."""

    def make(folder: Path) -> None:
        train_on(trained.parent, folder / "run", trained, *ABLATION, *DECODES)
        export_checkpoint(folder / "run", folder / "nld", "nld", report=lambda _: None)

    return shared_folder(tmp_path_factory, "whole-clean-blocks", make)


def test_the_run_decodes_by_diffusion_alone(ablated: Path) -> None:
    (record,) = records_of(ablated / "run")
    assert record["loss"] == pytest.approx(0.4 * record["diffusion_loss"])
    assert list(record["decoding"]["modes"]) == ["diffusion"]
    assert "agreement" not in record["decoding"]["modes"]["diffusion"]


def test_run_and_export_decode_as_full_forwards_do(ablated: Path) -> None:
    """Without AR predictions, and with blocks of prompt and text that see themselves whole."""
    from transformers import Ministral3Config, Ministral3ForCausalLM

    model = NemotronLabsDiffusionModel.from_pretrained(ablated / "nld", dtype=torch.float32)
    settings = {**model.config.to_dict(), "attn_implementation": "eager", "architectures": None, "auto_map": None}
    stock = Ministral3ForCausalLM(Ministral3Config(**{key: settings[key] for key in settings if key != "model_type"}))
    names = {
        name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): value
        for name, value in model.state_dict().items()
    }
    stock.load_state_dict(names)
    reader = Reader(stock.eval(), model.config.mask_token_id)
    expected = [
        diffusion(reader, prompt, LIMIT, BLOCK_SIZE, at_least(THRESHOLD), (), 0, BLOCK_SIZE).tokens
        for prompt in PROMPTS
    ]
    for path in (ablated / "run", ablated / "nld"):
        source = find_source(path)
        assert source.description.clean_stream == CleanStream(BLOCK_SIZE, ar=False)
        with source.open() as engine:
            options = DecodeOptions(LIMIT, block_length=BLOCK_SIZE)
            assert decode(engine, PROMPTS, "diffusion", options, Threshold(THRESHOLD)).token_ids == expected
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        found, _ = model.generate(torch.tensor([prompt]), LIMIT, threshold=THRESHOLD, eos_token_id=[])
        assert found[0, len(prompt) :].tolist() == tokens
    causal = [diffusion(reader, prompt, LIMIT, BLOCK_SIZE, at_least(THRESHOLD), (), 0).tokens for prompt in PROMPTS]
    assert causal != expected, "the text matters"


def test_an_export_says_so(ablated: Path) -> None:
    config = json.loads((ablated / "nld" / "config.json").read_text())
    assert (config["dlm_clean"], config["ar_loss_weight"], config["block_size"]) == ("block", 0.0, BLOCK_SIZE)
    card = (ablated / "nld" / "README.md").read_text()
    assert "It decodes by block diffusion alone" in card
    assert "autoregressively, by block diffusion" not in card
    assert "| 0.4 (AR loss x 0) |" in card


def test_a_stage_after_it_decides(ablated: Path, trained: Path, tmp_path: Path) -> None:
    again = train_on(trained.parent, tmp_path / "run", ablated / "run")
    assert find_source(again).description.clean_stream == CleanStream()
    assert find_source(trained).description.clean_stream == CleanStream()


def test_stock_tools_are_refused(ablated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(ablated / "run"), str(tmp_path / "out"), "--format", "ministral3"]
    said = refused(capsys, words, tmp_path / "out")
    assert "was trained with diffusion.clean=block, and stock tools decode autoregressively" in said


def test_modes_of_ar_predictions_are_refused(ablated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--mode", "ar"], ["--mode", "linear"], ["--compare"]):
        assert decode_command.main([str(ablated / "run"), "--prompt", "the old river", *words]) == 2
        assert "needs AR predictions, and this model was trained with diffusion.clean=block" in capsys.readouterr().err
    assert decode_command.main([str(ablated / "nld"), "--prompt", "the old", "--mode", "diffusion"]) == 0


def test_the_export_imports_and_verifies(ablated: Path, tmp_path: Path) -> None:
    assert main(["verify", str(ablated / "run"), str(ablated / "nld")]) == 0
    assert main(["import", str(ablated / "nld"), str(tmp_path / "imported")]) == 0
    assert find_source(tmp_path / "imported").description.clean_stream == CleanStream(BLOCK_SIZE, ar=False)
