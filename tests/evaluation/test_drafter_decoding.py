"""A trained drafter adapter in both engines: the same drafts, the AR text, and one line where it does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_that_decode import train
from test_harness import TASKS
from tiny_runs import newest_checkpoint
from tolerance import assert_close_to_rounding, forward_additions

from nld_train.commands import eval as evaluate
from nld_train.commands.decode import main
from nld_train.model.adapter_files import (
    CONFIG_FILE,
    DRAFTER_DIRECTORY,
    TENSOR_FILE,
    AdapterShape,
    read_tensors,
    tensor_names,
    write_adapter,
)

SHORT = ("--max-new-tokens", "20", "--mode", "linear", "--block-length", "4")
PROMPTS = ("seven times", "r\u00e9sum\u00e9 is", "and that ends here")


@pytest.fixture(scope="module")
def drafted(settings: tuple[str, ...], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the drafter stage over the weights of `trained`."""
    kept = [override for override in settings if not override.startswith("stages.")]
    stage = ("stages=drafter", f"stages.drafter.tokens={4 * 48}", "stages.drafter.adapter.rank=4")
    directory = tmp_path_factory.mktemp("drafted")
    return train(*kept, *stage, f"init.checkpoint={trained}", f"run.dir={directory}", hooked=True)


@pytest.fixture(scope="module")
def learned(drafted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its adapter, made so strong that it drafts otherwise than the model alone."""
    folder = newest_checkpoint(drafted) / DRAFTER_DIRECTORY
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_tensors(folder).items()
    }
    write_adapter(tmp_path_factory.mktemp("learned") / DRAFTER_DIRECTORY, AdapterShape(4, 8.0), tensors)
    return tmp_path_factory.getbasetemp() / "learned0"


@pytest.fixture(scope="module")
def export(drafted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from checkpoint_convert.exporting import export_checkpoint

    folder = tmp_path_factory.mktemp("exports") / "export"
    export_checkpoint(drafted, folder, "nld")
    return folder


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


@pytest.fixture
def records(capsys: pytest.CaptureFixture[str], prompts_file: Path) -> Any:
    def run(checkpoint: Path, *words: object, mode: Sequence[str] = SHORT[2:]) -> list[dict[str, Any]]:
        given = [str(checkpoint), "--prompts", str(prompts_file), *SHORT[:2], *mode, *map(str, words), "--json"]
        assert main(given) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(record.pop("seconds") > 0 for record in found)
        return found

    return run


def test_both_engines_draft_the_same(records: Any, drafted: Path, export: Path, learned: Path) -> None:
    """The adapter beside the weights, and one that is named: equal tokens, equal numbers of forwards."""
    for named in ((), (learned,), (learned / DRAFTER_DIRECTORY,)):
        found = records(drafted, "--adapter", *named)
        assert found == records(export, "--adapter", *named)
        assert [record["mode"] for record in found] == ["linear + adapter"] * len(PROMPTS)
    assert records(export, "--adapter", learned) == records(export, "--adapter", learned / DRAFTER_DIRECTORY)


def test_the_text_is_the_ar_text_with_any_adapter(records: Any, drafted: Path, learned: Path) -> None:
    adapted, plain = records(drafted, "--adapter", learned), records(drafted)
    ar = records(drafted, mode=("--mode", "ar"))
    texts = [[record["token_ids"] for record in found] for found in (adapted, plain, ar)]
    assert texts[0] == texts[1] == texts[2]
    forwards = [[record["forwards"] for record in found] for found in (adapted, plain)]
    assert forwards[0] != forwards[1]


def test_an_evaluation_drafts_with_it(drafted: Path, learned: Path, tmp_path: Path) -> None:
    """The same texts with other numbers of forwards: without, with the checkpoint's own, with one that is named."""
    figures, texts = {}, set()
    for name, adapter in {"none": (), "own": ("--adapter",), "named": ("--adapter", str(learned))}.items():
        output = tmp_path / f"{name}.json"
        given = [str(drafted), "--mode", "linear", *adapter, "--tasks", "local_text", "--include-path", str(TASKS)]
        more = ["--block-length", "4", "--max-new-tokens", "20", "--log-samples", "--output", str(output)]
        assert evaluate.main([*given, *more]) == 0
        results = json.loads(output.read_text())
        figures[name] = results["evaluation"]["generation"]["local_text"]["forwards"]
        texts.add(str([sample["resps"] for sample in results["samples"]["local_text"]]))
    assert len(texts) == 1
    assert figures["named"] not in (figures["none"], figures["own"])


def test_a_comparison_has_a_line_with_the_adapter(records: Any, drafted: Path) -> None:
    modes = {record["mode"] for record in records(drafted, "--adapter", mode=("--compare",))}
    assert modes == {"ar", "diffusion", "linear", "quadratic", "linear + adapter"}


def test_an_export_drafts_with_it_in_plain_transformers(export: Path, learned: Path) -> None:
    """Through PEFT's own reader, W + (alpha / r) B A."""
    from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

    model = NemotronLabsDiffusionModel.from_pretrained(export, dtype=torch.float32).eval()
    assert model.drafter() is not None
    model.load_drafter(learned / DRAFTER_DIRECTORY)
    tensors, ids = read_tensors(learned / DRAFTER_DIRECTORY), torch.tensor([[1, 9, 30, 12]])
    with torch.no_grad():
        with model.drafter().installed():
            found = model(ids).logits
        for layer in range(4):
            down, up = (tensors[name] for name in tensor_names(layer))
            model.encoder.layers[layer].self_attn.o_proj.weight += 8 / 4 * up @ down
        assert_close_to_rounding(found, model(ids).logits, forward_additions(model.config, 4))


def other_adapter(folder: Path, learned: Path, change: str) -> Path:
    copy = shutil.copytree(learned / DRAFTER_DIRECTORY, folder / DRAFTER_DIRECTORY)
    tensors = read_tensors(copy)
    config = json.loads((copy / CONFIG_FILE).read_text())
    if change == "rank":
        config["r"] = 5
    elif change == "target":
        config["target_modules"] = ["o_proj", "q_proj"]
    elif change == "variant":
        config["use_dora"] = True
    if change in ("rank", "target", "variant"):
        (copy / CONFIG_FILE).write_text(json.dumps(config))
    elif change == "layers":
        write_adapter(copy, AdapterShape(4, 8.0), {n: t for n, t in tensors.items() if "layers.3." not in n})
    elif change == "width":
        write_adapter(copy, AdapterShape(4, 8.0), {n: t[..., :3] for n, t in tensors.items()})
    elif change == "cut":
        (copy / TENSOR_FILE).write_bytes((copy / TENSOR_FILE).read_bytes()[:50])
    elif change == "config":
        (copy / CONFIG_FILE).write_text("{")
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rank", "does not fit this model"),
        ("layers", "layers.3.self_attn.o_proj.lora_A.weight has shape none"),
        ("width", "does not fit this model"),
        ("target", "not a LoRA on o_proj alone"),
        ("variant", "use_dora is set"),
        ("cut", f"{TENSOR_FILE}: cannot be read"),
        ("config", f"{CONFIG_FILE}: not JSON"),
    ],
)
def test_adapters_that_do_not_fit(
    drafted: Path, export: Path, learned: Path, tmp_path: Path, change: str, message: str, capsys: Any
) -> None:
    bad = other_adapter(tmp_path, learned, change)
    for checkpoint in (drafted, export):
        capsys.readouterr()
        assert main([str(checkpoint), "--prompt", "seven", *SHORT, "--adapter", str(bad)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_an_adapter_that_is_not_there(trained: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert main([str(trained), "--prompt", "seven", *SHORT, "--adapter"]) == 2
    assert "this model has no drafter adapter" in capsys.readouterr().err
    assert main([str(trained), "--prompt", "seven", *SHORT, "--adapter", str(tmp_path)]) == 2
    assert "holds no drafter adapter" in capsys.readouterr().err
