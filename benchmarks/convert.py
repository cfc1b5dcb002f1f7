"""How fast checkpoints are converted, against reading and writing the same bytes.

    python benchmarks/convert.py [--gigabytes 1] [--repeats 3]

Makes a Ministral3 of about that size in bf16, and in turn copies its file (read, write, fsync), imports it and exports
the import, so that all three meet the same disk. Speeds are the median of the repeats, as a share of the copy's.
Prints a table and writes `benchmarks/results/convert.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.mapping import NAMING_OF_FORMAT, part_shape, tensors
from checkpoint_convert.safetensors_writer import Output, write_shards
from nld_train.config.compose import compose_config
from nld_train.config.counts import parameter_count
from nld_train.config.schema import ModelConfig
from nld_train.training.report import git_revision

RESULTS = Path(__file__).parent / "results" / "convert.json"
TARGET = 0.8
_COPY_BYTES = 16 << 20


def model_of(gigabytes: float) -> ModelConfig:
    """The 3B's proportions with as many layers as fill the size, and a quarter of its vocabulary."""
    overrides = ["experiment=paper_3b", "model.vocab_size=32768"]
    counts = [parameter_count(compose_config([*overrides, f"model.num_hidden_layers={n}"]).model) for n in (1, 2)]
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * counts[0] + counts[1]) / (counts[1] - counts[0])))
    return compose_config([*overrides, f"model.num_hidden_layers={layers}"]).model


def _filled(block: torch.Tensor, count: int) -> list[torch.Tensor]:
    """`count` values of no meaning, in one piece."""
    return [block.repeat(count // len(block) + 1)[:count]]


def write_source(directory: Path, model: ModelConfig) -> int:
    """Writes the model with random bf16 weights; returns the bytes of its tensors."""
    naming, block = NAMING_OF_FORMAT["ministral3"], torch.randn(1 << 22).to(torch.bfloat16)
    outputs = [
        Output(
            naming.full(t.name),
            shape,
            torch.bfloat16,
            partial(_filled, block, math.prod(shape)),
        )
        for t in tensors(model)
        for shape in [part_shape(t.part, model)]
    ]
    directory.mkdir()
    write_shards(directory, outputs, lambda _: None)
    from checkpoint_convert.export_config import decoder_config

    config = {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", **decoder_config(model)}
    (directory / "config.json").write_text(json.dumps(config))
    return sum(output.bytes for output in outputs)


def copy(source: Path, destination: Path) -> None:
    """Reads and writes the weights of a directory, and waits for the disk."""
    destination.mkdir()
    for path in source.glob("*.safetensors"):
        with path.open("rb", buffering=0) as reading, (destination / path.name).open("wb", buffering=0) as writing:
            while data := reading.read(_COPY_BYTES):
                writing.write(data)
            os.fsync(writing.fileno())


def measure(place: Path, source: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, in turn."""
    imported, exported, copied = place / "imported", place / "exported", place / "copied"
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: copy(source, copied),
        "import": lambda: import_checkpoint(source, imported, say=lambda _: None),
        "export": lambda: export_checkpoint(imported, exported, "nld", say=lambda _: None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, step in steps.items():
            os.sync()
            begin = time.perf_counter()
            step()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
        for path in (imported, exported, copied):
            shutil.rmtree(path)
    return seconds


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--place", type=Path, help="directory on the disk to measure (default: the temporary one)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place, prefix="nld-convert-") as name:
        place = Path(name)
        size = write_source(place / "source", model_of(options.gigabytes))
        seconds = measure(place, place / "source", options.repeats)
    speeds = {step: size / median(values) / 1e6 for step, values in seconds.items()}
    for step, speed in speeds.items():
        ratio = f"{speed / speeds['copy']:.2f} of the copy's speed (target {TARGET})" if step != "copy" else ""
        print(f"{step:7} {speed:8.0f} MB/s  {ratio}")
    result = {
        "command": f"python benchmarks/convert.py --gigabytes {options.gigabytes} --repeats {options.repeats}",
        "revision": git_revision(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "bytes": size,
        "seconds": seconds,
        "megabytes_per_second": speeds,
        "ratio": {step: speeds[step] / speeds["copy"] for step in ("import", "export")},
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
