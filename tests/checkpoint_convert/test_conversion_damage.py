"""Every reader names a damaged file of a checkpoint, and the manifest lists every file."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hugging_face_sources import read_tensors
from refusals import refused

from checkpoint_convert.cli import main
from nld_train.errors import UserError


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_a_weight(imported: Path) -> None:
    """One bit in the middle of the embedding, in whichever file it is."""
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
    "flipped model": (lambda d: flip_a_digit(d / "model.json"), "model.json"),
    "flipped source": (lambda d: flip_a_digit(d / "source" / "config.json"), "source/config.json"),
    "manifest": (lambda d: (d / "manifest.json").write_text("{") and None, "manifest.json"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "manifest.json"),
}


def flip_a_digit(path: Path) -> None:
    """Another constant of the rotary embedding: still JSON, and still a model."""
    text = path.read_text()
    assert text.count("12345.0") == 1
    path.write_text(text.replace("12345.0", "12344.0"))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_exported(
    damage: str, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected_text = DAMAGE[damage]
    change(imported)
    message = refused(
        capsys, ["export", str(imported), str(tmp_path / "out"), "--format", "ministral3"], tmp_path / "out"
    )
    assert expected_text in message


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", ["verify", "decode", "init.checkpoint"])
def test_a_damaged_checkpoint_is_not_read(
    reader: str, damage: str, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected_text = DAMAGE[damage]
    change(imported)
    assert read(reader, imported) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(imported) in message
    assert expected_text.removesuffix(" (CRC-32)") in message


def read(reader: str, imported: Path) -> int:
    """The exit status of what reads a checkpoint."""
    if reader == "verify":
        return main(["verify", str(imported), str(imported.parent / "source")])
    if reader == "decode":
        from nld_train.commands.decode import main as decode

        return decode([str(imported), "--mode", "ar", "--prompt", "x"])
    from nld_train.config.compose import compose_config
    from nld_train.training.checkpoint.initial_weights import find_initial_weights
    from nld_train.training.loop.parallel import parallel_groups

    config = compose_config([f"init.checkpoint={imported}", "execution.device=cpu"])
    try:
        with parallel_groups(config):
            find_initial_weights(config)
    except UserError as error:
        print(error, file=sys.stderr)
    return 2


@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_pickle_that_is_not_listed_is_not_read(
    command: str, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((imported / "manifest.json").read_text())
    del manifest["files"][".metadata"]
    (imported / "manifest.json").write_text(json.dumps(manifest))
    arguments = [command, str(imported), str(tmp_path / ("out" if command == "export" else "source"))]
    message = refused(capsys, arguments + ["--format", "nld"] * (command == "export"), tmp_path / "out")
    assert message == f"error: {imported} is damaged: manifest.json does not list .metadata\n"


def test_the_manifest_names_every_file(imported: Path) -> None:
    from nld_train.training.checkpoint.manifest import MANIFEST, find_damage

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
