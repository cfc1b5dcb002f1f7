"""How much of the chip's arithmetic AR and joint steps use on layers of the 8B model.

    python -m benchmarks.mfu                                       with Megatron's layers and with Transformer Engine's
    python -m benchmarks.mfu --kinds local --peak-tflops 1979 execution.head_chunk_rows=4096

FLOP utilisation as in the reference, section 4: visible pairs, the body for 2L positions, the head for supervised rows,
forward plus backward, over the chip's dense bf16 peak from its data sheet. Each kind of layers runs in a process of its
own through `benchmarks.step`.
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

from benchmarks.record import RESULTS, keep
from benchmarks.shapes import SHAPES
from nld_train.training.hardware import peak_flops

KINDS = ("local", "transformer_engine")
# The best that is published for AR pretraining of an 8B model on H100s.
TARGET = 0.52


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="whose layers (default: 8b)")
    parser.add_argument("--layers", type=int, help="how many (default: as many as fit)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of layers (default: both)")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each (default: 7)")
    parser.add_argument("--peak-tflops", type=float, help="of the chip (default: from the table of data sheets)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = peak_flops(device, options.peak_tflops)
    if peak is None:
        parser.error("--peak-tflops: the peak of this device is not in nld_train/training/hardware.py; name it")
    figures = measure(options, peak, device)
    show(figures)
    print(keep("mfu", figures, options.results))


def measure(options: argparse.Namespace, peak: float, device: torch.device) -> dict[str, Any]:
    """Utilisation by kind of layers and of step, or why there is none."""
    kinds = {kind: _missing(kind, device) or _utilisation(_step(kind, options), peak) for kind in options.kinds}
    return {"device": str(device), "peak_tflops": peak / 1e12, "target": TARGET, "kinds": kinds}


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
            return {"missing": f"failed: {done.stderr.strip().splitlines()[-1][:200]}"}
        figures: dict[str, Any] = json.loads((Path(folder) / f"step_{options.shape}.json").read_text())["figures"]
        return figures


def _utilisation(figures: dict[str, Any], peak: float) -> dict[str, Any]:
    if "missing" in figures:
        return figures
    share = {kind: figures["operations"][kind] / figures["seconds"][kind] / peak for kind in ("ar", "joint")}
    return {**figures, "utilisation": share}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    table = Table("layers", "AR step", "joint step", title=f"of {figures['peak_tflops']:.0f} TFLOP/s")
    for kind, found in figures["kinds"].items():
        cells = [found["missing"], ""] if "missing" in found else [f"{x:.1%}" for x in found["utilisation"].values()]
        table.add_row(kind, *cells)
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
