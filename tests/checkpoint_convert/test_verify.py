"""`nld-convert verify`: agreement, and every way in which two checkpoints may differ."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from hugging_face_sources import TEXT, change_config, change_tensors, named, read_tensors, write_source

from checkpoint_convert.cli import main
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.verify import verify


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A source and its import."""
    write_source(tmp_path / "source", named("fp32"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    return tmp_path / "source", tmp_path / "imported"


def status(first: Path, second: Path, *arguments: str) -> int:
    return main(["verify", str(first), str(second), *arguments])


def test_both_kinds_agree_in_either_order(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, imported = pair
    assert status(source, imported) == 0
    assert status(imported, source) == 0
    printed = capsys.readouterr().out
    assert "21 tensors compared, 0 differ; the checkpoints agree" in printed
    assert "positions from 0" in printed
    assert "positions from 32" in printed


def test_the_tensors_are_shown_before_the_logits_are_computed(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = []

    def interrupted(*_: object) -> None:
        before.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr("checkpoint_convert.verify.logit_blocks", interrupted)
    assert status(*pair) == 130
    assert "Largest differences" in before[0]
    assert "embed_tokens.weight" in before[0]


def test_tensors_alone_are_compared(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("checkpoint_convert.verify.logit_blocks")
    assert status(*pair, "--tensors-only") == 0
    printed = capsys.readouterr().out
    assert "21 tensors compared, 0 differ; no logits compared; the checkpoints agree" in printed
    assert "positions" not in printed
    change_tensors(pair[0], {"model.norm.weight": torch.ones(40)})
    assert status(*pair, "--tensors-only") == 1
    assert status(*pair, "--tensors-only", "--tokens", "tokens") == 2


def test_a_log_shows_how_far_a_comparison_is(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nld_train.progress._FIRST_LINE", 0.0)
    assert status(*pair) == 0
    lines = capsys.readouterr().err.splitlines()
    for what in ("compare tensors", "compare logits"):
        found = [line for line in lines if line.startswith(what)]
        percents = [int(line.split(": ")[1].partition("%")[0]) for line in found]
        assert percents == sorted(percents)
        assert percents[0] < 50 < percents[-1] <= 100, "the total is what is read"


def test_one_value_is_enough_to_differ(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, imported = pair
    name = "model.layers.1.mlp.up_proj.weight"
    changed = read_tensors(source)[name]
    changed[3, 4] = torch.nextafter(changed[3, 4], torch.tensor(9.0))
    change_tensors(source, {name: changed})
    assert status(source, imported) == 1
    printed = capsys.readouterr().out
    assert "1 of 2240" in printed
    assert printed.index("layers.1.mlp.up_proj.weight") < printed.index("embed_tokens.weight")


def test_not_a_number_differs_from_a_number(pair: tuple[Path, Path]) -> None:
    source, imported = pair
    change_tensors(source, {"model.norm.weight": torch.full((40,), float("nan"))})
    assert status(source, imported) == 1


def test_weights_with_nan_do_not_agree_with_themselves(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """They are named, and no logits are computed from them."""
    source, _ = pair
    change_tensors(source, {"model.layers.0.mlp.up_proj.weight": torch.full((56, 40), torch.inf)})
    assert status(source, source) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "21 tensors compared, 0 differ, 1 contain NaN or infinity; no logits compared; the checkpoints do not agree"
        in printed
    )
    assert "2240 not finite" in printed
    assert "positions from" not in printed


def test_settings_decide_too(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, imported = pair
    change_config(source, {"rope_theta": 54321.0}, inside=["rope_parameters"])
    found = verify(source, imported)
    assert all(tensor.agrees for tensor in found.tensors)
    assert [logits.agrees for logits in found.logits] == [False, False]
    assert status(source, imported) == 1
    assert "setting differs: rope_parameters" in capsys.readouterr().out


def test_the_query_scale_shows_at_far_positions_alone(pair: tuple[Path, Path]) -> None:
    source, imported = pair
    change_config(source, {"llama_4_scaling_beta": 0.5}, inside=["rope_parameters"])
    tokens = source.parent / "tokens"
    tokens.write_text("4 5 6 7")
    assert verify(source, imported, str(tokens)).logits[0].agrees
    assert not verify(source, imported).logits[1].agrees


def test_rounding_on_export_is_not_a_difference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, imported = pair
    export_checkpoint(imported, tmp_path / "bf16", "nld", dtype="bf16", report=lambda _: None)
    assert verify(imported, tmp_path / "bf16").agrees
    assert verify(tmp_path / "bf16", imported).agrees
    change_tensors(
        tmp_path / "bf16", {"encoder.norm.weight": read_tensors(tmp_path / "bf16")["encoder.norm.weight"] * 1.01}
    )
    assert not verify(imported, tmp_path / "bf16").agrees


def test_tokens_from_a_file(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[4, 5, 66]", "4 5\n66\n"):
        (tmp_path / "tokens").write_text(text)
        assert status(*pair, "--tokens", str(tmp_path / "tokens")) == 0
    for text in ("[4, 67]", "-1", "", "four", "[]", "[1.5]", "9" * 5000, f"[{'9' * 5000}]", "[" * 10**5, "[true]"):
        (tmp_path / "tokens").write_text(text)
        assert status(*pair, "--tokens", str(tmp_path / "tokens")) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: --tokens {tmp_path}/tokens")
        assert message.count("\n") == 1
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "none", tmp_path):
        assert status(*pair, "--tokens", str(path)) == 2
        assert capsys.readouterr().err.startswith(f"error: --tokens {path}: ")


def test_other_shapes_are_no_comparison(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = copy.deepcopy(TEXT) | {"intermediate_size": 48}
    write_source(pair[0].parent / "other", named("untied"), text)
    assert status(pair[1], pair[0].parent / "other") == 2
    assert "intermediate_size" in capsys.readouterr().err


def test_a_tied_export_agrees_with_its_untied_import(tmp_path: Path) -> None:
    write_source(tmp_path / "source", named("wrapper_tied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3", report=lambda _: None)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert verify(tmp_path / "imported", tmp_path / "out").agrees
