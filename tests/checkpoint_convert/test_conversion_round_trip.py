"""Import, then export, returns every tensor bit for bit, and every setting as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hugging_face_sources import (
    GENERATION,
    HEADS,
    PREFIXES,
    SOURCES,
    TEXT,
    Source,
    named,
    read_tensors,
    write_source,
    write_tensors,
)
from torch import Tensor

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.safetensors_writer import Output, write_shards

FORMATS = {"nld": "nld", "ministral3": "plain"}


def expected_tensors(meaning: dict[str, Tensor], source: Source, output_format: str) -> dict[str, Tensor]:
    kind = FORMATS[output_format]
    names = {name: HEADS[kind] if name == "head.weight" else PREFIXES[kind] + name for name in meaning}
    tied = source.tied and output_format == "ministral3"
    return {names[name]: value for name, value in meaning.items() if not (tied and name == "head.weight")}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_tensor_returns_bit_for_bit(source: Source, tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", source)
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    for output_format in FORMATS:
        out = tmp_path / output_format
        export_checkpoint(tmp_path / "imported", out, output_format)
        assert_same_bits(read_tensors(out), expected_tensors(meaning, source, output_format))
        config = json.loads((out / "config.json").read_text())
        assert {key: config[key] for key in TEXT if key != "model_type"} == {
            key: value for key, value in TEXT.items() if key != "model_type"
        }
        assert config["tie_word_embeddings"] is (source.tied and output_format == "ministral3")
        # Its temperature is for sampling, which transformers wants to be told to save it.
        expected = {**GENERATION, "do_sample": True}
        if output_format == "nld":
            expected |= {"decoding_mode": "ar", "diffusion_selection_policy": "confidence_threshold"}
            expected |= {"diffusion_confidence_threshold": 0.9, "max_denoising_steps": config["block_size"]}
        assert json.loads((out / "generation_config.json").read_text()) == expected
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (out / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
        assert (out / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "ministral3", "nld", "source"]


def test_the_config_of_an_nld_export(tmp_path: Path) -> None:
    write_source(tmp_path / "source", named("nld"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "nld")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["NemotronLabsDiffusionModel"]
    assert config["model_type"] == "nemotron_labs_diffusion"
    for target in config["auto_map"].values():
        assert (tmp_path / "out" / f"{target.split('.')[0]}.py").is_file()
    expected = {"mask_token_id": 66, "block_size": 16, "dlm_paradigm": "bidirectional", "dlm_loss_weight": 0.25}
    assert {key: config[key] for key in expected} == expected
    assert config["ar_loss_weight"] == 0.5


def test_a_given_type_rounds_once(tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", named("fp32"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3", dtype="bf16")
    rounded = {name: value.to(torch.bfloat16) for name, value in meaning.items()}
    assert_same_bits(read_tensors(tmp_path / "out"), expected_tensors(rounded, named("fp32"), "ministral3"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_are_cut_and_listed(tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", named("untied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3", shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in meaning.values())
    assert_same_bits(read_tensors(tmp_path / "out"), expected_tensors(meaning, named("untied"), "ministral3"))


def test_a_shard_keeps_to_its_size_and_data_is_aligned(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.arange(n * 100, dtype=torch.float32) for n in range(1, 8)}
    outputs = [Output(n, tuple(t.shape), t.dtype, lambda t=t: [t[:50], t[50:]]) for n, t in tensors.items()]
    seen: list[int] = []
    write_shards(tmp_path, outputs, seen.append, shard_bytes=2000)
    assert sum(seen) == sum(t.nbytes for t in tensors.values())
    assert_same_bits(read_tensors(tmp_path), tensors)
    for file in tmp_path.glob("*.safetensors"):
        header = int.from_bytes(file.read_bytes()[:8], "little")
        assert (header + 8) % 64 == 0
        data_bytes = file.stat().st_size - header - 8
        assert data_bytes <= 2000 or data_bytes in {t.nbytes for t in tensors.values()}


def test_types_may_be_mixed_and_widen_without_loss(tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", named("untied"))
    kept = read_tensors(tmp_path / "source")
    for name in kept:
        if name.endswith(("k_proj.weight", "norm.weight")):
            kept[name] = kept[name].float() + 2**-20
    write_tensors(tmp_path / "source", kept)
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3")
    found = read_tensors(tmp_path / "out")
    assert found.keys() == kept.keys()
    assert meaning.keys() != kept.keys()
    for name, value in kept.items():
        assert torch.equal(found[name].float(), value.float()), name


def test_older_forms_of_rope_are_understood(tmp_path: Path) -> None:
    from hugging_face_sources import change_config

    from checkpoint_convert.checkpoints import open_weights

    write_source(tmp_path / "new", named("untied"))
    write_source(tmp_path / "old", named("untied"))
    rope = {key: value for key, value in TEXT["rope_parameters"].items() if key not in ("rope_theta", "rope_type")}
    change_config(tmp_path / "old", {"rope_parameters": None, "rope_theta": 12345.0, "rope_scaling": rope})
    assert open_weights(tmp_path / "old").model.rope_parameters == open_weights(tmp_path / "new").model.rope_parameters


def test_a_terminal_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meaning = write_source(tmp_path / "source", named("untied"))
    monkeypatch.setenv("COLUMNS", "120")
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
        imported, out = tmp_path / f"imported{terminal}", tmp_path / f"out{terminal}"
        import_checkpoint(tmp_path / "source", imported, report=lambda _: None)
        export_checkpoint(imported, out, "ministral3", report=lambda _: None)
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        total = f"{sum(value.nbytes for value in meaning.values()) / 1000:.1f}"
        assert (f"{total}/{total} kB" in shown) is terminal
        assert ("import source" in shown and f"export imported{terminal}" in shown) is terminal


def test_nothing_of_the_directory_is_run(tmp_path: Path) -> None:
    from hugging_face_sources import change_config

    write_source(tmp_path / "source", named("nld"))
    marker = tmp_path / "it_ran"
    code = f"open({str(marker)!r}, 'w')\n"
    for name in ("configuration_nemotron_labs_diffusion.py", "modeling_nemotron_labs_diffusion.py", "tokenization.py"):
        (tmp_path / "source" / name).write_text(code)
    change_config(tmp_path / "source", {"auto_map": {"AutoConfig": "configuration_nemotron_labs_diffusion.Config"}})
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    assert not marker.exists()
    assert not list((tmp_path / "imported").rglob("*.py"))
