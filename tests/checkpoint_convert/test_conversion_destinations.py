"""Where a conversion writes: what is there is kept, and a disk that is full leaves nothing behind."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hugging_face_sources import (
    TEXT,
    change_config,
    named,
    write_source,
)
from refusals import refused

from checkpoint_convert.cli import main
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.staging import staged
from nld_train.errors import UserError


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
    from hugging_face_sources import HEADS, PREFIXES, shapes

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
