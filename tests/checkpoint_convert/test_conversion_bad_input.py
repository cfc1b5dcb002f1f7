"""Every mistake: one clear line that names it, status 2, and nothing written."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
import torch
from conversion_mistakes import MISTAKES
from hugging_face_sources import (
    TEXT,
    change_config,
    change_tensors,
    named,
    read_tensors,
    write_source,
)
from refusals import refused

from checkpoint_convert.cli import main
from checkpoint_convert.importing import import_checkpoint
from nld_train.errors import UserError
from nld_train.printable import printable
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_source_is_named(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change, expected = MISTAKES[mistake]
    write_source(tmp_path / "source", named(name))
    change(tmp_path / "source")
    message = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    for words in expected:
        assert words in message
    assert str(tmp_path / "source") in message


def test_what_export_and_verify_cannot_read(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["--format", "nld"]
    out = tmp_path / "out"
    assert "is neither" in refused(capsys, ["export", str(tmp_path / "none"), str(out), *export], out)
    assert "import it first" in refused(capsys, ["export", str(tmp_path / "source"), str(out), *export], out)
    no_tokenizer = ["--tokenizer", str(tmp_path / "none")]
    assert "--tokenizer" in refused(capsys, ["export", str(imported), str(out), *export, *no_tokenizer], out)
    assert "is not a directory" in refused(capsys, ["import", str(tmp_path / "none"), str(out)], out)
    assert "is neither" in refused(capsys, ["verify", str(imported), str(tmp_path / "none")], out)


@pytest.mark.parametrize("text", ["", "../elsewhere"])
def test_a_pointer_that_names_no_checkpoint(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nld_train.training.checkpoint.paths import find_initial_checkpoint

    pointer = tmp_path / "run" / "checkpoints" / "latest"
    pointer.parent.mkdir(parents=True)
    pointer.write_text(text)
    arguments = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "nld"]
    assert f"{pointer} must hold the name of a checkpoint" in refused(capsys, arguments, tmp_path / "out")
    with pytest.raises(UserError, match=f"init.checkpoint: {pointer} must hold the name of a checkpoint"):
        find_initial_checkpoint(tmp_path / "run")


HOSTILE = 'a"b`c|<img>[x](http)\x1b]0;owned\x07\u202egnp\x9b'


def test_hostile_names_stay_text_in_the_model_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the folder, and of the checkpoint that another program may have written."""
    write_source(tmp_path / "source", named("untied"))
    imported, out = tmp_path / f"{HOSTILE}-imported", tmp_path / HOSTILE
    import_checkpoint(tmp_path / "source", imported)
    record = imported / "source" / "conversion.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"architecture": HOSTILE}))
    (imported / MANIFEST).unlink()
    write_manifest(imported, {})
    assert main(["export", str(imported), str(out), "--format", "nld"]) == 0
    printed = capsys.readouterr().out
    card = (out / "README.md").read_text()
    for found in (printed, card):
        assert printable(found) == found
    assert '# a"b\\`c\\|\\<img\\>\\[x\\]\\(http\\)\\\\x1b' in card
    code = card.split("```")[1].removeprefix("python\n")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func).endswith(".from_pretrained")]
    assert [ast.literal_eval(call.args[0]) for call in loads] == [HOSTILE] * 2
    assert 'an import of a a"b\\`c' in card
    assert 'the weights are those of `` a"b`c|<img>' in card


def test_a_hostile_config_is_one_printable_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("untied"))
    for changes in (
        {"architectures": [HOSTILE]},
        {"architectures": [{"a": HOSTILE}] * 1000},
        {"hidden_act": HOSTILE * 1000},
        {"layer_types": [HOSTILE]},
        {"rope_parameters": {"rope_type": [HOSTILE] * 1000}},
    ):
        change_config(tmp_path / "source", changes)
        message = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
        assert message.removesuffix("\n").isprintable()
        assert len(message) < 2200
        change_config(tmp_path / "source", {**TEXT, "architectures": ["Ministral3ForCausalLM"], "layer_types": None})


def test_a_tensor_with_a_hostile_name_is_printed_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("untied"))
    change_tensors(tmp_path / "source", {f"{HOSTILE}[/nope]": torch.ones(1)})
    message = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    assert 'extra tensor a"b`c|<img>[x](http)\\x1b]0;owned\\x07\\u202egnp\\x9b[/nope]' in message


def test_the_mask_token_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the option, where `config.json` has null; else by `config.json`, with which an option must agree."""
    for name, source, noted in (("null", "untied", None), ("named", "nld", 66)):
        write_source(tmp_path / name, named(source))
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token_id": noted}))
    for name, token in (("null", 7), ("named", 66)):
        out = tmp_path / f"{name}-out"
        import_checkpoint(tmp_path / name, out, mask_token_id=token, report=lambda _: None)
        assert json.loads((out / "model.json").read_text())["mask_token_id"] == token
    arguments = ["import", str(tmp_path / "named"), str(tmp_path / "out"), "--mask-token-id", "7"]
    message = refused(capsys, arguments, tmp_path / "out")
    assert message.startswith(f"error: --mask-token-id 7: {tmp_path}/named/config.json has 66")
    assert main(["import", str(tmp_path / "null"), str(tmp_path / "out")]) == 0
    assert "the model has no mask token: 66 is used (--mask-token-id)" in capsys.readouterr().out


def test_values_beyond_fp16_are_not_made_infinite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("fp32"))
    change_tensors(tmp_path / "source", {"model.norm.weight": torch.full((40,), 1e6)})
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    arguments = ["export", str(tmp_path / "imported"), str(tmp_path / "out"), "--format", "nld", "--dtype", "fp16"]
    assert "norm.weight" in refused(capsys, arguments, tmp_path / "out")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.self_attn.v_proj.weight", "norm.weight"])
def test_weights_with_nan_are_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: float
) -> None:
    """Both threads of the writer; one value is enough."""
    write_source(tmp_path / "source", named("untied"))
    changed = read_tensors(tmp_path / "source")[f"model.{name}"]
    changed.view(-1)[3] = value
    change_tensors(tmp_path / "source", {f"model.{name}": changed})
    message = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    assert (
        message
        == f"error: {tmp_path}/source: tensor {name} contains NaN or infinity; convert weights that are finite\n"
    )


def test_a_tokenizer_of_another_model_is_not_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More ids than the model has, or a special token that `config.json` and the generation config do not name."""
    write_source(tmp_path / "source", named("untied"))
    arguments = ["import", str(tmp_path / "source"), str(tmp_path / "out")]
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')

    def write(eos: int, bos: int) -> None:
        definition = {"model": {"vocab": {"a": 20, "</s>": eos, "<s>": bos}}}
        (tmp_path / "source" / "tokenizer.json").write_text(json.dumps(definition))

    write(70, 1)
    assert "its tokenizer has 71 ids" in refused(capsys, arguments, tmp_path / "out")
    write(2, 9)
    assert "bos_token_id is 1 in config.json and 9 in its tokenizer" in refused(capsys, arguments, tmp_path / "out")
    write(9, 1)
    assert "eos_token_id is 2" in refused(capsys, arguments, tmp_path / "out")
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"mask_token": "a"}')
    write(2, 1)
    assert "--mask-token-id 20" in refused(capsys, arguments, tmp_path / "out")
    assert main([*arguments, "--mask-token-id", "20"]) == 0
