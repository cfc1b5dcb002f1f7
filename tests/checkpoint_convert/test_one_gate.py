"""Import, verify and decode read a Hugging Face directory by the same rules: what one refuses, all do."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hugging_face_sources import change_config, named, read_tensors, write_source, write_tensors

from checkpoint_convert.checkpoints import open_weights
from checkpoint_convert.importing import import_checkpoint
from nld_train.decoding.load import find_source
from nld_train.errors import UserError

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(autouse=True)
def seconds() -> Iterator[None]:
    """Reading from a pipe or for a billion layers would not end."""

    def stop(*_: object) -> None:
        raise TimeoutError("the directory was still being read after 20 seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pickled(source: Path) -> None:
    for file in source.glob("model*"):
        file.unlink()
    torch.save({"w": torch.ones(1)}, source / "pytorch_model.bin")


def outside(source: Path) -> None:
    """The weights are elsewhere, and the index leads there."""
    index = source / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    for file in set(listed.values()):
        (source / file).rename(source.parent / file)
    index.write_text(json.dumps({"weight_map": {name: f"../{file}" for name, file in listed.items()}}))


def shard(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        (source / SHARD).unlink()
        make(source / SHARD)

    return change


def socket_at(path: Path) -> None:
    """A socket's path is short, and that of a test is not."""
    with ExitStack() as stack:
        here = os.open(path.parent, os.O_RDONLY)
        stack.callback(os.close, here)
        stack.enter_context(socket.socket(socket.AF_UNIX)).bind(f"/proc/self/fd/{here}/{path.name}")


def config(**changes: object) -> Callable[[Path], None]:
    return lambda source: change_config(source, changes)


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda source: (source / name).write_text(content) and None


def other_tensors(source: Path) -> None:
    tensors = read_tensors(source)
    tensors["encoder.layers.0.self_attn.q_proj.weight"] = torch.ones(40, 120)
    write_tensors(source, tensors, shards=2)


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickled weights": (pickled, "only pickled weights (pytorch_model.bin)"),
    "weights outside the directory": (outside, '"../model-'),
    "a pipe as shard": (shard(os.mkfifo), f"{SHARD}: not a complete safetensors file"),
    "a socket as shard": (shard(socket_at), f"{SHARD}: not a complete safetensors file"),
    "a device as shard": (shard(lambda path: path.symlink_to("/dev/zero")), f"{SHARD}: not a complete safetensors"),
    "a folder as shard": (shard(Path.mkdir), f"{SHARD}: not a complete safetensors file"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers=1000000000, but the weights have only 21"),
    "three layers": (config(num_hidden_layers=3), "missing tensor encoder.layers.2."),
    "a tensor of another shape": (other_tensors, "q_proj.weight has shape [40, 120]"),
    "positions beyond all integers": (config(max_position_embeddings=10**30), "max_position_embeddings must be"),
    "another objective": (config(dlm_paradigm="evil"), 'dlm_paradigm="evil" is not supported'),
    "no size of blocks": (config(block_size="16"), 'block_size must be an integer above 0, but is "16"'),
    "a weight of the loss": (config(dlm_loss_weight=float("inf")), "dlm_loss_weight must be a number of 0 or more"),
    "a stop token that is a text": (config(eos_token_id="</s>"), "eos_token_id must be an id of the vocabulary"),
    "a number of 5,000 digits": (
        text("config.json", '{"model_type": "nemotron_labs_diffusion", "hidden_size": ' + "9" * 5000 + "}"),
        "config.json: has an integer of more than 4300 digits",
    ),
    "a key twice": (
        text("config.json", '{"model_type": "nemotron_labs_diffusion", "hidden_size": 40, "hidden_size": 48}'),
        "config.json: hidden_size is duplicated",
    ),
    "an index that is no text": (
        lambda source: (source / "model.safetensors.index.json").write_bytes(b"\xff\xfe{") and None,
        "model.safetensors.index.json: not UTF-8",
    ),
    "an index that is a pipe within a name": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "a\\u0000.safetensors"}}'),
        "not a complete safetensors file",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_import_refuses_is_not_decoded_either(kind: str, tmp_path: Path) -> None:
    change, expected = ODD[kind]
    source = tmp_path / "source"
    write_source(source, named("nld"))
    change(source)
    messages = []
    for read in (
        lambda: import_checkpoint(source, tmp_path / "out", report=lambda _: None),
        lambda: open_weights(source),
        lambda: find_source(source),
    ):
        with pytest.raises(UserError) as found:
            read()
        messages.append(str(found.value))
    assert expected in messages[0]
    assert len(set(messages)) == 1, messages


def test_a_link_to_a_shard_is_read(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub, whose files are links out of the directory."""
    source = tmp_path / "source"
    write_source(source, named("nld"))
    (source / SHARD).rename(tmp_path / "blob")
    (source / SHARD).symlink_to("../blob")
    assert open_weights(source).model.num_hidden_layers == 2
