"""FLOP utilisation of AR and joint steps on layers of the 8B model.

    python -m benchmarks.mfu                                       with Megatron's layers and with Transformer Engine's
    python -m benchmarks.mfu --kinds local --peak-tflops 1979 execution.head_chunk_rows=4096

FLOPs are counted as in docs/method.md, "Stages": attention by visible pairs, the layers for 2L positions, the head for
supervised rows, forward plus backward. Utilisation is relative to the chip's dense bf16 peak from its data sheet. Each
kind of layers runs in its own process through `benchmarks.step`, and is written as soon as it is measured. Prints
utilisation, target and their ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, result_name, write_result
from benchmarks.shapes import SHAPES
from nld_train.config.compose import compose_config
from nld_train.errors import UserError, exit_status
from nld_train.training.loop.hardware import peak_flops
from nld_train.training.loop.parallel import resolve_device

KINDS = ("local", "transformer_engine")
# The best published figure for AR pretraining of an 8B model on H100s.
TARGET = 0.52


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        UserError: no kind of layers could be measured.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="shape of the layers (default: 8b)")
    parser.add_argument("--layers", type=int, help="number of layers (default: as many as fit)")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of layers (default: both)"
    )
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each kind (default: 7)")
    parser.add_argument("--peak-tflops", type=float, help="peak of the chip (default: from the table of data sheets)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    device = resolve_device(compose_config(options.overrides).execution.device)
    peak = peak_flops(device, options.peak_tflops)
    if peak is None:
        parser.error("--peak-tflops: the peak of this device is not in nld_train/training/loop/hardware.py; name it")
    figures: dict[str, Any] = {"device": str(device), "peak_tflops": peak / 1e12, "target": TARGET, "kinds": {}}
    for kind in options.kinds:
        figures["kinds"][kind] = _missing(kind, device) or _utilisation(_step(kind, options), peak)
        path = write_result(result_name("mfu", device), figures, options.results)
    show(figures)
    print(path)
    if not any("utilisation" in found for found in figures["kinds"].values()):
        raise UserError("--kinds: none of them could be measured; the reasons are in the table")


def _missing(kind: str, device: torch.device) -> dict[str, Any]:
    if kind == "local":
        return {}
    if find_spec("transformer_engine") is None:
        return {"missing": "not installed"}
    return {} if device.type == "cuda" else {"missing": "not measured: needs CUDA"}


def _step(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nld-mfu-") as folder:
        words = ["--shape", options.shape, "--steps", str(options.steps), "--results", folder]
        words += ["--layers", str(options.layers)] if options.layers else []
        command = [sys.executable, "-m", "benchmarks.step", *words, f"execution.layers={kind}", *options.overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last_line = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            return {"missing": f"failed: {last_line[:200]}"}
        (path,) = Path(folder).glob("*.json")
        figures: dict[str, Any] = json.loads(path.read_text())["figures"]
        return figures


def _utilisation(figures: dict[str, Any], peak: float) -> dict[str, Any]:
    if "missing" in figures:
        return figures
    share = {kind: figures["operations"][kind] / figures["seconds"][kind] / peak for kind in ("ar", "joint")}
    of_target = {kind: value / TARGET for kind, value in share.items()}
    return {**figures, "peak_tflops": peak / 1e12, "utilisation": share, "of_target": of_target}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    title = f"of {figures['peak_tflops']:.0f} TFLOP/s"
    table = Table("layers", "step", "utilisation", "target", "of target", title=title)
    for kind, found in figures["kinds"].items():
        if "missing" in found:
            table.add_row(kind, "", found["missing"], "", "")
            continue
        for step, share in found["utilisation"].items():
            table.add_row(kind, step, f"{share:.1%}", f"{TARGET:.0%}", f"{found['of_target'][step]:.2f}")
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
