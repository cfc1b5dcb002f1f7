"""Every mistake: one clear line that names it, status 2, and nothing written."""

from __future__ import annotations

import ast
import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hugging_face_sources import (
    TEXT,
    change_config,
    change_tensors,
    named,
    read_tensors,
    write_source,
    write_tensors,
)
from refusals import refused
from safetensors.torch import save_file

from checkpoint_convert.cli import main
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.staging import staged
from nld_train.errors import UserError
from nld_train.printable import printable
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
FP8_SCALE = "language_model.model.layers.1.self_attn.q_proj.weight_scale_inv"


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
    original = read_tensors(source)
    (source / "model.safetensors").unlink()
    write_tensors(source, original, shards=3)
    first = source / "model-00001-of-00003.safetensors"
    save_file({**read_tensors_of(first), Q_PROJ: original[Q_PROJ]}, first)
    second = source / "model-00002-of-00003.safetensors"
    save_file({**read_tensors_of(second), Q_PROJ: original[Q_PROJ]}, second)


def read_tensors_of(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def rewrite_header(source: Path, change: Callable[[str], str]) -> None:
    """Changes the text of a file's header."""
    path = source / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + size].decode().rstrip()).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def duplicated_in_one_file(source: Path) -> None:
    """Two entries of one name, which JSON allows."""
    k_proj, v_proj = (f"model.layers.1.self_attn.{name}_proj" for name in "kv")
    rewrite_header(source, lambda header: header.replace(k_proj, v_proj, 1))


def duplicated_in_one_file_alike(source: Path) -> None:
    """Two entries that mean the same bytes, which the library opens."""
    name = "model.norm.weight"
    rewrite_header(source, lambda header: f'{header[:-1]},"{name}":{json.dumps(json.loads(header)[name])}}}')


def missing_shard(source: Path) -> None:
    original = read_tensors(source)
    (source / "model.safetensors").unlink()
    write_tensors(source, original, shards=2)
    (source / "model-00002-of-00002.safetensors").unlink()


def single_file_and_shards(source: Path) -> None:
    write_tensors(source, read_tensors(source), shards=2)


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
    "truncated shard": ("untied", truncated, ("model.safetensors", "not a complete safetensors file")),
    "a shard that is a pickle": ("untied", not_safetensors, ("model.safetensors", "not a complete safetensors file")),
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
    "duplicated in one file": ("untied", duplicated_in_one_file, ("layers.1.self_attn.v_proj.weight is duplicated",)),
    "duplicated bytes": ("untied", duplicated_in_one_file_alike, ("model.norm.weight is duplicated",)),
    "FP8 without scale": ("fp8", tensors(**{FP8_SCALE.replace(".", "__"): None}), ("missing tensor", FP8_SCALE)),
    "FP8 in blocks": ("fp8", tensors(**{FP8_SCALE.replace(".", "__"): torch.ones(2, 2)}), (FP8_SCALE, "per tensor")),
    "FP8 into nothing known": ("fp8", config(("text_config",), dtype="float8_e4m3fn"), ("float8_e4m3fn",)),
    "architecture": ("untied", config(architectures=["LlamaForCausalLM"]), ("LlamaForCausalLM", "supported:")),
    "no architecture": ("untied", config(architectures=None, model_type="llama"), ('"llama"', "supported:")),
    "text model of the wrapper": ("wrapper_tied", config(("text_config",), model_type="mistral"), ('"mistral"',)),
    "wrapper without text": ("wrapper_tied", config(text_config=None), ("text_config",)),
    "rope type": ("untied", config(ROPE, rope_type="llama3"), ('rope_type "llama3"', "default, yarn")),
    "rope setting": ("untied", config(ROPE, partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "rope scaling that is off elsewhere": ("untied", config(ROPE, apply_yarn_scaling=False), ("apply_yarn_scaling",)),
    "rope value": ("untied", config(ROPE, factor=None), ("factor",)),
    "rope missing": ("untied", config(rope_parameters=None), ("rope_theta",)),
    "activation": ("untied", config(hidden_act="gelu"), ("hidden_act", "gelu")),
    "sliding window": ("untied", config(sliding_window=4096), ("sliding_window",)),
    "no head_dim": ("untied", config(head_dim=None), ("head_dim", "missing")),
    "groups": ("untied", config(num_key_value_heads=4), ("num_attention_heads=6", "num_key_value_heads=4")),
    "size": ("untied", config(hidden_size="40"), ("hidden_size",)),
    "mask token": ("nld", config(mask_token_id=67), ("mask_token_id 67", "correct it")),
    "mask token that is a truth value": ("nld", config(mask_token_id=True), ("mask_token_id True",)),
    "rope is a list": ("untied", config(rope_parameters=[1]), ("rope_parameters must be an object", "[1]")),
    "rope scaling is a name": (
        "untied",
        config(rope_parameters=None, rope_theta=1e4, rope_scaling="yarn"),
        ("rope_scaling must be an object", '"yarn"'),
    ),
    "rope factor": ("untied", config(ROPE, factor=0), ("factor must be a number above 0, but is 0",)),
    "rope length": ("untied", config(ROPE, original_max_position_embeddings=16.5), ("integer above 0, but is 16.5",)),
    "rope beta": ("untied", config(ROPE, beta_fast="a"), ('beta_fast must be a number above 0, but is "a"',)),
    "rope multiplier": ("untied", config(ROPE, mscale=-1), ("mscale must be a number of 0 or more, but is -1",)),
    "norm": ("untied", config(rms_norm_eps=math.nan), ("rms_norm_eps must be a number above 0, but is NaN",)),
    "number beyond all floats": ("untied", config(rms_norm_eps=10**400), ("rms_norm_eps must be a number above 0",)),
    "layer types": ("untied", config(layer_types=3), ("layer_types must be a list of names, but is 3",)),
    "architectures": ("untied", config(architectures="Llama"), ("architectures must be a list", '"Llama"')),
    "stop token": ("untied", config(eos_token_id=67), ("config.json: eos_token_id must be", "67, or a list", "is 67")),
    "one of several stop tokens": ("untied", config(eos_token_id=[2, -1]), ("eos_token_id must be", "[2, -1]")),
    "stop token of generation": (
        "untied",
        lambda s: (s / "generation_config.json").write_text('{"eos_token_id": "x"}') and None,
        ("generation_config.json: eos_token_id must be", '"x"'),
    ),
    "deeply nested config": (
        "untied",
        lambda s: (s / "config.json").write_text("[" * 200_000 + "]" * 200_000) and None,
        ("config.json: is nested too deeply",),
    ),
    "single file and shards": ("untied", single_file_and_shards, ("model.safetensors and", "model-00001-of-00002")),
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
    name, change, expected = MISTAKES[mistake]
    write_source(tmp_path / "source", named(name))
    change(tmp_path / "source")
    message = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    for words in expected:
        assert words in message
    assert str(tmp_path / "source") in message


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_destination_that_exists_is_refused_and_kept(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "source", named("untied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    source = tmp_path / ("source" if command == "import" else "imported")
    extra = ["--format", "nld"] if command == "export" else []
    message = refused(capsys, [command, str(source), str(tmp_path / "out"), *extra], tmp_path / "out")
    assert "exists" in message
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
    message = refused(capsys, ["import", str(tmp_path / "source"), str(tmp_path / "out")], tmp_path / "out")
    assert "needs 16000.1 GB" in message
    assert "are free" in message


def test_too_little_space_for_any_conversion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 8000\.1 GB, but only"), staged(tmp_path / "out", 8 * 10**12):
        pytest.fail("nothing may be written")
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Writing more bytes to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fails_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the main thread or in the other one, whose errors torch's writer ignores."""
    write_source(tmp_path / "source", named("untied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    small, large = sorted(path.stat().st_size for path in (tmp_path / "imported").glob("*.distcp"))
    assert small + 100 < large
    out = tmp_path / "out"
    commands = [["import", str(tmp_path / "source"), str(out)]] * 4
    commands.append(["export", str(tmp_path / "imported"), str(out), "--format", "nld"])
    for command in commands:
        with files_of_at_most(large - 50):
            message = refused(capsys, command, out)
        assert message == f"error: {out}: cannot be written (File too large)\n"


def test_an_unwritable_destination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("untied"))
    (tmp_path / "file").write_text("")
    destination = tmp_path / "file" / "out"
    assert main(["import", str(tmp_path / "source"), str(destination)]) == 2
    assert "cannot be written" in capsys.readouterr().err


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
