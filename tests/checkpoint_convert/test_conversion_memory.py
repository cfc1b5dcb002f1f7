"""Memory does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hugging_face_sources import TEXT, Source, larger, write_source

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("memory_of_conversion.py")
LARGE = larger(
    TEXT,
    vocab_size=32768,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=20,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
)
MIB = 1 << 20


def measured(command: str, source: Path, destination: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), command, str(source), str(destination)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert found["samples"] > 20
    return found


@pytest.mark.parametrize("fp8", [False, True])
def test_converting_takes_little_anonymous_memory(fp8: bool, tmp_path: Path) -> None:
    """The model has some 600 MiB in bf16: a conversion that had all of it in memory would fail."""
    meaning = write_source(tmp_path / "source", Source("large", fp8=fp8), LARGE)
    total = sum(tensor.nbytes for tensor in meaning.values())
    largest = max(tensor.nbytes for tensor in meaning.values())
    del meaning
    assert total > 600 * MIB
    for command, source, destination in (("import", "source", "imported"), ("export", "imported", "out")):
        found = measured(command, tmp_path / source, tmp_path / destination)
        grown = found["largest"] - found["before"]
        print(f"{command}: {grown / MIB:.0f} MiB more than before, {found['largest'] / MIB:.0f} MiB in all")
        # The documented bound is the largest tensor and 2 GiB; at this size only a tighter one can fail.
        # Two writers have a buffer of 64 MiB each; FP8 is dequantised in small blocks.
        assert grown < largest + 200 * MIB
        assert found["largest"] < largest + 2048 * MIB
    # One layer and a part of the head in float32, and what `transformers` takes when it is imported.
    found = measured("verify", tmp_path / "source", tmp_path / "imported")
    print(f"verify: {(found['largest'] - found['before']) / MIB:.0f} MiB more than before")
    assert found["largest"] - found["before"] < largest + 600 * MIB
