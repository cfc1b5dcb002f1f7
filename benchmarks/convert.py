"""The speed of checkpoint conversion relative to copying the same bytes.

    python -m benchmarks.convert [--gigabytes 2] [--pairs 4] [--directory DIR]

Creates a Ministral3 of about that size in bf16, imports it and exports the import, each paired with a copy of the same
bytes (read, write, fsync). The speed of a shared disk changes from minute to minute. So every conversion is paired with
a copy, in alternating order, all with a cold page cache, and the ratio is the median over the pairs. The start of the
command (Python, torch) takes the same time for every model; it is measured separately, by converting a model of a few
kilobytes. Everything is printed, and written as JSON with the processor time of each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.record import RESULTS, write_result
from checkpoint_convert.export_config import decoder_config
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.mapping import naming_of_format, part_shape, tensors
from checkpoint_convert.safetensors_writer import Output, write_shards
from nld_train.config.compose import compose_config
from nld_train.config.counts import parameter_count
from nld_train.config.schema import ModelConfig

TARGET = 0.8
_COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Time:
    """Seconds of wall clock, and of processor time over all cores."""

    clock: float
    processor: float


def model_of(gigabytes: float) -> ModelConfig:
    """The 3B shape with a quarter of its vocabulary, and as many layers as give about this size."""
    one = replace(compose_config(["experiment=paper_3b"]).model, vocab_size=32768, num_hidden_layers=1)
    two = replace(one, num_hidden_layers=2)
    layer = parameter_count(two) - parameter_count(one)
    others = parameter_count(one) - layer
    return replace(one, num_hidden_layers=max(1, round((gigabytes * 1e9 / 2 - others) / layer)))


def _filled(block: torch.Tensor, count: int) -> list[torch.Tensor]:
    """`count` arbitrary values, in one tensor."""
    return [block.repeat(count // len(block) + 1)[:count]]


def write_source(directory: Path, model: ModelConfig) -> int:
    """Writes the model with random bf16 weights; returns the bytes of its tensors."""
    naming, block = naming_of_format("ministral3", model), torch.randn(1 << 22).to(torch.bfloat16)
    outputs = [
        Output(naming.full(tensor.name), shape, torch.bfloat16, partial(_filled, block, math.prod(shape)))
        for tensor in tensors(model)
        for shape in [part_shape(tensor.part, model)]
    ]
    directory.mkdir()
    write_shards(directory, outputs, lambda _: None)
    config = {"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", **decoder_config(model)}
    (directory / "config.json").write_text(json.dumps(config))
    return sum(output.bytes for output in outputs)


def copy(source: Path, destination: Path) -> None:
    """Reads and writes all files of a directory, and waits for the disk."""
    destination.mkdir()
    for path in filter(Path.is_file, source.iterdir()):
        with path.open("rb", buffering=0) as reading, (destination / path.name).open("wb", buffering=0) as writing:
            while data := reading.read(_COPY_BYTES):
                writing.write(data)
            os.fsync(writing.fileno())


def timed(operation: Callable[[Path, Path], object], source: Path, destination: Path) -> Time:
    """The time of one conversion or copy, with a cold page cache; its output is removed."""
    os.sync()
    for path in filter(Path.is_file, source.iterdir()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    clock, processor = time.perf_counter(), time.process_time()
    operation(source, destination)
    taken = Time(time.perf_counter() - clock, time.process_time() - processor)
    shutil.rmtree(destination)
    return taken


def measure(convert: Callable[[Path, Path], object], source: Path, folder: Path, pairs: int) -> dict[str, Any]:
    """Times of pairs of a conversion and a copy of its source, and the conversion's speed divided by the copy's."""
    operations: dict[str, Callable[[Path, Path], object]] = {"convert": convert, "copy": copy}
    times: dict[str, list[Time]] = {name: [] for name in operations}
    for pair in range(pairs):
        for name in sorted(operations, reverse=bool(pair % 2)):
            times[name].append(timed(operations[name], source, folder / name))
    ratios = [copied.clock / made.clock for copied, made in zip(times["copy"], times["convert"], strict=True)]
    return {
        "seconds": {name: [taken.clock for taken in found] for name, found in times.items()},
        "processor_seconds": {name: [taken.processor for taken in found] for name, found in times.items()},
        "ratios": ratios,
        "ratio": median(ratios),
    }


def seconds_to_start(folder: Path) -> float:
    """Seconds of the command with a model of a few kilobytes: the constant part of every conversion."""
    base = replace(model_of(0), num_attention_heads=8, head_dim=8)
    small = replace(base, vocab_size=128, hidden_size=16, intermediate_size=16)
    write_source(folder / "small", small)
    command = [sys.executable, "-m", "checkpoint_convert.cli", "import", str(folder / "small")]
    taken = []
    for number in range(3):
        begin = time.perf_counter()
        subprocess.run([*command, str(folder / f"small-{number}")], check=True, capture_output=True)
        taken.append(time.perf_counter() - begin)
    return median(taken)


def _import(source: Path, destination: Path) -> None:
    import_checkpoint(source, destination, report=lambda _: None)


def _export(source: Path, destination: Path) -> None:
    export_checkpoint(source, destination, "nld", report=lambda _: None)


def run(folder: Path, gigabytes: float, pairs: int) -> dict[str, Any]:
    """Measures both directions and the start of the command."""
    source, imported = folder / "source", folder / "imported"
    size = write_source(source, model_of(gigabytes))
    figures: dict[str, Any] = {"bytes": size, "target_ratio": TARGET, "seconds_to_start": seconds_to_start(folder)}
    figures["import"] = measure(_import, source, folder, pairs)
    _import(source, imported)
    shutil.rmtree(source)
    figures["export"] = measure(_export, imported, folder, pairs)
    return figures


def report(figures: dict[str, Any]) -> None:
    """Prints the figures."""
    for name in ("import", "export"):
        found = figures[name]
        for operation, clock in found["seconds"].items():
            speed, processor = figures["bytes"] / median(clock) / 1e6, median(found["processor_seconds"][operation])
            print(f"{name} {operation:8} {speed:6.0f} MB/s, {processor:5.2f} s of processor time")
        ratios = " ".join(f"{ratio:.2f}" for ratio in found["ratios"])
        print(f"{name}: {found['ratio']:.2f} of the copy's speed (target {TARGET}; pairs: {ratios})")
    print(f"starting the command: {figures['seconds_to_start']:.1f} s")


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the model in bf16 (default: 2)")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a conversion and a copy (default: 4)")
    parser.add_argument("--directory", type=Path, help="directory on the disk to measure (default: the temporary one)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="nld-convert-") as name:
        figures = run(Path(name), options.gigabytes, options.pairs)
    report(figures)
    print(write_result("convert", figures, options.results))


if __name__ == "__main__":
    main()
