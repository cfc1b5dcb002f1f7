"""`nld-decode`: what a checkpoint or an export brings, its tokenizer and its settings, and what it may not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_helpers import SHORT, refusal
from tiny_runs import newest_checkpoint

from nld_train.commands.decode import main
from nld_train.data.tokenizer import save_tokenizer, train_bpe
from nld_train.data.tokenizer_files import copy_tokenizer
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest


def test_a_config_that_names_kernels_and_quantisation_changes_nothing(
    trained_export: Path, tmp_path: Path, records: Any
) -> None:
    """An export from elsewhere: what its config asks of `transformers` is not done."""
    copy = shutil.copytree(trained_export, tmp_path / "export")
    settings = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "auto_map": {"AutoModel": "evil/code--modeling.Model"},
        "dtype": "float16",
    }
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | settings))
    words = ("--mode", "linear", "--prompt", "seven times")
    assert records(copy, *words) == records(trained_export, *words)


def test_decoded_text_with_escapes_is_printable_json(
    trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt is repeated in the record, and the model may write such characters as well."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a\x1b[2J\x9b\u202e\x7fb"}) + "\n")
    capsys.readouterr()
    assert (
        main([str(trained_export), "--mode", "ar", "--prompts", str(tmp_path / "prompts.jsonl"), *SHORT, "--json"]) == 0
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert json.loads(line)["prompt"] == "a\x1b[2J\x9b\u202e\x7fb"


def test_a_checkpoint_brings_its_tokenizer(records: Any, trained: Path, tmp_path: Path) -> None:
    """To a machine that has nothing else of the run."""
    checkpoint = newest_checkpoint(trained)
    assert "tokenizer/tokenizer.json" in json.loads((checkpoint / MANIFEST).read_text())["files"]
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    assert Path(settings["data"]["tokenizer"]).is_dir()
    settings["data"]["tokenizer"] = str(tmp_path / "nowhere")
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    write_manifest(copy, {})
    words = ("--mode", "ar", "--prompt", "seven times")
    assert records(copy, *words) == records(checkpoint, *words)


def test_a_checkpoint_without_tokenizer_is_refused(
    imported: Path, trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], records: Any
) -> None:
    for path in (imported, trained_export):
        copy = shutil.copytree(path, tmp_path / path.name)
        kept = shutil.copytree(path, tmp_path / f"kept-{path.name}")
        for file in [*copy.rglob("tokenizer*.json"), *copy.rglob("special_tokens_map.json")]:
            file.unlink()
        if (copy / MANIFEST).is_file():  # it is not damaged: it never had them
            write_manifest(copy, {})
        capsys.readouterr()
        message = refusal(capsys, main, str(copy), "--mode", "ar", "--prompt", "seven")
        assert "no tokenizer was found" in message
        tokenizer = kept / "tokenizer" if (kept / "tokenizer").is_dir() else kept
        assert records(copy, "--mode", "ar", "--prompt", "seven", "--tokenizer", tokenizer)


@pytest.mark.parametrize("kind", ["trained", "imported", "trained_export"])
def test_another_tokenizer_than_the_checkpoints_is_refused(
    request: pytest.FixtureRequest, records: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Its ids would be decoded as those of the checkpoint's, into other text. A copy is the same tokenizer."""
    path, trained_export = request.getfixturevalue(kind), request.getfixturevalue("trained_export")
    words = (str(path), "--mode", "ar", "--prompt", "seven times")
    for number, size in enumerate((260, 300)):
        save_tokenizer(train_bpe(["seven times seven"] * 9, size), str(tmp_path / f"bpe-{number}"))
        message = refusal(capsys, main, *words, "--tokenizer", str(tmp_path / f"bpe-{number}"))
        assert message.startswith(f"error: --tokenizer: {tmp_path}/bpe-{number} is another tokenizer (hash ")
    copy_tokenizer(trained_export, tmp_path)
    assert records(*words, "--tokenizer", tmp_path) == records(*words)
