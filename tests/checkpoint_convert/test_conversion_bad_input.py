"""Every mistake: one clear line that names it, status 2, and nothing written."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hugging_face_sources import (
    change_config,
    change_tensors,
    named,
    read_tensors,
    write_source,
    write_tensors,
)
from safetensors.torch import save_file

from checkpoint_convert.cli import main
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.staging import staged
from nld_train.errors import UserError
from nld_train.model.adapter_files import AdapterShape, tensor_names, write_adapter

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
FP8_SCALE = "language_model.model.layers.1.self_attn.q_proj.weight_scale_inv"


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], destination: Path) -> str:
    """The one line that a command says; it must leave nothing behind."""
    before = {path.name for path in destination.parent.iterdir()}
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert {path.name for path in destination.parent.iterdir()} == before
    return said.err


def remove(*names: str) -> Callable[[Path], None]:
    return lambda source: [(source / name).unlink() for name in names] and None


def tensors(**change: torch.Tensor | None) -> Callable[[Path], None]:
    return lambda source: change_tensors(source, {name.replace("__", "."): value for name, value in change.items()})


def config(inside: tuple[str, ...] = (), **changes: object) -> Callable[[Path], None]:
    return lambda source: change_config(source, changes, inside)


def pickled(source: Path) -> None:
    """Weights whose reading would leave a mark."""
    (source / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1)}, source / "pytorch_model.bin")


def truncated(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def not_safetensors(source: Path) -> None:
    torch.save({"w": torch.ones(100)}, source / "model.safetensors")


def duplicated_in_two_shards(source: Path) -> None:
    held = read_tensors(source)
    (source / "model.safetensors").unlink()
    write_tensors(source, held, shards=3)
    first = source / "model-00001-of-00003.safetensors"
    save_file({**read_tensors_of(first), Q_PROJ: held[Q_PROJ]}, first)
    second = source / "model-00002-of-00003.safetensors"
    save_file({**read_tensors_of(second), Q_PROJ: held[Q_PROJ]}, second)


def read_tensors_of(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def duplicated_in_one_file(source: Path) -> None:
    """Two entries of one name, which JSON allows."""
    path = source / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = (
        data[8 : 8 + size].decode().replace("model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj", 1)
    )
    text = header.encode().ljust(size)
    path.write_bytes(data[:8] + text[:size] + data[8 + size :])


def missing_shard(source: Path) -> None:
    held = read_tensors(source)
    (source / "model.safetensors").unlink()
    write_tensors(source, held, shards=2)
    (source / "model-00002-of-00002.safetensors").unlink()


def index(weight_map: dict[str, str]) -> Callable[[Path], None]:
    text = json.dumps({"weight_map": weight_map})
    return lambda source: (source / "model.safetensors.index.json").write_text(text) and None


ROPE = ("rope_parameters",)
MISTAKES: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "no config": ("untied", remove("config.json"), ("has no config.json",)),
    "no weights": ("untied", remove("model.safetensors"), ("has no weights",)),
    "config is no JSON": (
        "untied",
        lambda s: (s / "config.json").write_text("{") and None,
        ("config.json", "not JSON"),
    ),
    "config is a list": ("untied", lambda s: (s / "config.json").write_text("[]") and None, ("JSON object",)),
    "generation config is no JSON": (
        "untied",
        lambda s: (s / "generation_config.json").write_text("x") and None,
        ("generation_config.json",),
    ),
    "pickled weights": ("untied", pickled, ("pytorch_model.bin", "refused")),
    "truncated shard": ("untied", truncated, ("model.safetensors", "not a whole safetensors file")),
    "a shard that is a pickle": ("untied", not_safetensors, ("model.safetensors", "not a whole safetensors file")),
    "missing shard": ("untied", missing_shard, ("model-00002-of-00002.safetensors", "missing")),
    "index outside the directory": ("untied", index({"a": "../model.safetensors"}), ("../model.safetensors",)),
    "empty index": ("untied", index({}), ("weight_map",)),
    "index lists what is not there": (
        "untied",
        index({"model.none.weight": "model.safetensors"}),
        ("model.none.weight", "lacks"),
    ),
    "missing tensor": ("untied", tensors(**{Q_PROJ.replace(".", "__"): None}), ("missing tensor", Q_PROJ)),
    "missing embedding": ("untied", tensors(model__embed_tokens__weight=None), ("missing tensor", "embed_tokens")),
    "missing head of ours": ("nld", lambda s: drop_head(s), ("missing tensor diffusion_head.weight",)),
    "extra tensor": ("untied", tensors(model__layers__1__extra=torch.ones(2)), ("extra tensor", "layers.1.extra")),
    "extra layer": (
        "untied",
        tensors(model__layers__2__input_layernorm__weight=torch.ones(40)),
        ("extra tensor", "layers.2"),
    ),
    "misshapen tensor": (
        "untied",
        tensors(**{Q_PROJ.replace(".", "__"): torch.ones(40, 120)}),
        (Q_PROJ, "[40, 120]", "[120, 40]"),
    ),
    "type": ("untied", tensors(model__norm__weight=torch.ones(40, dtype=torch.int32)), ("model.norm.weight", "I32")),
    "duplicated in two shards": ("untied", duplicated_in_two_shards, (Q_PROJ, "duplicated")),
    "duplicated in one file": ("untied", duplicated_in_one_file, ("model.safetensors", "not a whole safetensors file")),
    "FP8 without scale": ("fp8", tensors(**{FP8_SCALE.replace(".", "__"): None}), ("missing tensor", FP8_SCALE)),
    "FP8 in blocks": ("fp8", tensors(**{FP8_SCALE.replace(".", "__"): torch.ones(2, 2)}), (FP8_SCALE, "per tensor")),
    "FP8 into nothing known": ("fp8", config(("text_config",), dtype="float8_e4m3fn"), ("float8_e4m3fn",)),
    "architecture": ("untied", config(architectures=["LlamaForCausalLM"]), ("LlamaForCausalLM", "supported:")),
    "no architecture": ("untied", config(architectures=None, model_type="llama"), ("'llama'", "supported:")),
    "text model of the wrapper": ("wrapper_tied", config(("text_config",), model_type="mistral"), ("'mistral'",)),
    "wrapper without text": ("wrapper_tied", config(text_config=None), ("text_config",)),
    "rope type": ("untied", config(ROPE, rope_type="llama3"), ("rope_type 'llama3'", "default, yarn")),
    "rope setting": ("untied", config(ROPE, partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "rope value": ("untied", config(ROPE, factor=None), ("factor",)),
    "rope missing": ("untied", config(rope_parameters=None), ("rope_theta",)),
    "activation": ("untied", config(hidden_act="gelu"), ("hidden_act", "gelu")),
    "sliding window": ("untied", config(sliding_window=4096), ("sliding_window",)),
    "no head_dim": ("untied", config(head_dim=None), ("head_dim", "missing")),
    "groups": ("untied", config(num_key_value_heads=4), ("num_attention_heads=6", "num_key_value_heads=4")),
    "size": ("untied", config(hidden_size="40"), ("hidden_size",)),
    "mask token": ("nld", config(mask_token_id=67), ("mask_token_id 67", "--mask-token-id")),
}


def drop_head(source: Path) -> None:
    for file in source.glob("*.safetensors"):
        save_file({n: t for n, t in read_tensors_of(file).items() if n != "diffusion_head.weight"}, file)
    index_path = source / "model.safetensors.index.json"
    value = json.loads(index_path.read_text())
    del value["weight_map"]["diffusion_head.weight"]
    index_path.write_text(json.dumps(value))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_source_is_named(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change, wanted = MISTAKES[mistake]
    write_source(tmp_path / "source", named(name))
    change(tmp_path / "source")
    said = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    for words in wanted:
        assert words in said
    assert str(tmp_path / "source") in said


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_destination_that_exists_is_refused_and_kept(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "source", named("untied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", say=lambda _: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    source = tmp_path / ("source" if command == "import" else "imported")
    extra = ["--format", "nld"] if command == "export" else []
    said = refused(capsys, [command, str(source), str(tmp_path / "out"), *extra], tmp_path / "out")
    assert "exists" in said
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_too_little_space_is_seen_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source of 8 TB that takes no space: its file is all hole."""
    from hugging_face_sources import HEADS, PREFIXES, TEXT, shapes

    text = {**TEXT, "vocab_size": 10**11}
    write_source(tmp_path / "source", named("untied"))
    change_config(tmp_path / "source", {"vocab_size": text["vocab_size"]})
    header, start = {}, 0
    for name, shape in shapes(text).items():
        size = 2 * torch.Size(shape).numel()
        full = HEADS["plain"] if name == "head.weight" else PREFIXES["plain"] + name
        header[full] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    encoded = json.dumps(header).encode()
    with (tmp_path / "source" / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + start)
    said = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    assert "needs 16000.1 GB" in said
    assert "are free" in said


def test_too_little_space_for_any_conversion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 8000\.1 GB, but only"), staged(tmp_path / "out", 8 * 10**12):
        pytest.fail("nothing may be written")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_destination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("untied"))
    (tmp_path / "file").write_text("")
    destination = tmp_path / "file" / "out"
    assert main(["import", str(tmp_path / "source"), str(destination)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    write_source(tmp_path / "source", named("untied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", say=lambda _: None)
    return tmp_path / "imported"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_a_weight(imported: Path) -> None:
    """One bit in the middle of the embedding, wherever that lies."""
    weight = bytes(
        read_tensors(imported.parent / "source")["model.embed_tokens.weight"].view(torch.uint8).flatten().tolist()
    )
    (path,) = [path for path in imported.glob("*.distcp") if weight in path.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(weight) + len(weight) // 2] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no shard": (lambda d: (d / "__0_1.distcp").unlink(), "__0_1.distcp"),
    "truncated shard": (lambda d: shorten(d / "__0_0.distcp"), "__0_0.distcp"),
    "flipped byte": (flip_a_weight, "content that was written (CRC-32)"),
    "metadata": (lambda d: flip(d / ".metadata"), ".metadata"),
    "no metadata": (lambda d: (d / ".metadata").unlink(), ".metadata"),
    "common state": (lambda d: flip(d / "common.pt"), "common.pt"),
    "model": (lambda d: (d / "model.json").write_text("{}") and None, "model.json"),
    "manifest": (lambda d: (d / "manifest.json").write_text("{") and None, "manifest.json"),
}


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_exported(
    damage: str, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, wanted = DAMAGE[damage]
    change(imported)
    said = refused(capsys, ["export", str(imported), str(tmp_path / "out"), "--format", "ministral3"], tmp_path / "out")
    assert wanted in said


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", ["verify", "decode", "init.checkpoint"])
def test_a_damaged_checkpoint_is_not_read(
    reader: str, damage: str, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, wanted = DAMAGE[damage]
    change(imported)
    assert read(reader, imported) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(imported) in said
    assert wanted.removesuffix(" (CRC-32)") in said


def read(reader: str, imported: Path) -> int:
    """The exit status of what reads a checkpoint."""
    if reader == "verify":
        return main(["verify", str(imported), str(imported.parent / "source")])
    if reader == "decode":
        from nld_train.decode import main as decode

        return decode([str(imported), "--mode", "ar", "--prompt", "x"])
    from nld_train.config.compose import compose_config
    from nld_train.training.starting_weights import find_starting_weights

    try:
        find_starting_weights(compose_config([f"init.checkpoint={imported}"]))
    except UserError as error:
        print(error, file=sys.stderr)
    return 2


def test_the_manifest_names_every_file(imported: Path) -> None:
    from nld_train.training.integrity import MANIFEST, find_damage

    files = {path.relative_to(imported).as_posix(): path for path in imported.rglob("*") if path.is_file()}
    listed = json.loads((imported / MANIFEST).read_text())["files"]
    assert set(listed) == set(files) - {MANIFEST}
    assert sum(name.endswith(".distcp") for name in listed) == 2
    for name, (size, checksum) in listed.items():
        data = files[name].read_bytes()
        weights = name.endswith(".distcp")
        expected = f"crc32:{zlib.crc32(data):08x}" if weights else hashlib.blake2b(data, digest_size=16).hexdigest()
        assert (size, checksum) == (len(data), expected), name
    assert find_damage(imported) is None
    for name in ("__0_0.distcp", "__0_1.distcp", "source/config.json", "tokenizer/tokenizer.json"):
        whole = files[name].read_bytes()
        flip(files[name])
        assert find_damage(imported) == f"{name} does not have the content that was written (checksum)"
        files[name].write_bytes(whole)


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
    changes, wanted = OTHER_ADAPTERS[kind]
    adapter, out = write_drafter(tmp_path / "adapter", **changes), tmp_path / "out"
    said = refused(capsys, ["export", str(imported), str(out), "--format", "nld", "--adapter", str(adapter)], out)
    assert wanted in said
    assert str(adapter) in said
    write_source(tmp_path / "model", named("nld"))
    write_drafter(tmp_path / "model" / "linear_spec_lora", **changes)
    assert wanted in refused(capsys, ["import", str(tmp_path / "model"), str(out)], out)


def test_an_adapter_travels_through_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "model", named("nld"))
    adapter = write_drafter(tmp_path / "model" / "linear_spec_lora")
    import_checkpoint(tmp_path / "model", tmp_path / "imported", say=lambda _: None)
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


def test_what_export_and_verify_cannot_read(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["--format", "nld"]
    out = tmp_path / "out"
    assert "is neither" in refused(capsys, ["export", str(tmp_path / "none"), str(out), *export], out)
    assert "import it first" in refused(capsys, ["export", str(tmp_path / "source"), str(out), *export], out)
    no_tokenizer = ["--tokenizer", str(tmp_path / "none")]
    assert "--tokenizer" in refused(capsys, ["export", str(imported), str(out), *export, *no_tokenizer], out)
    assert "is not a directory" in refused(capsys, ["import", str(tmp_path / "none"), str(out)], out)
    assert "is neither" in refused(capsys, ["verify", str(imported), str(tmp_path / "none")], out)


def test_values_beyond_fp16_are_not_made_infinite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("fp32"))
    change_tensors(tmp_path / "source", {"model.norm.weight": torch.full((40,), 1e6)})
    import_checkpoint(tmp_path / "source", tmp_path / "imported", say=lambda _: None)
    arguments = ["export", str(tmp_path / "imported"), str(tmp_path / "out"), "--format", "nld", "--dtype", "fp16"]
    assert "norm.weight" in refused(capsys, arguments, tmp_path / "out")
