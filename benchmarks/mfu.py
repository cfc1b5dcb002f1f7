"""FLOP utilisation of AR and joint steps on layers of the 8B model.

    python -m benchmarks.mfu                                       Megatron's layers; Transformer Engine's, in bf16, FP8
    python -m benchmarks.mfu --kinds local --peak-tflops 1979 execution.head_chunk_rows=4096

FLOPs are counted as in docs/method.md, "Stages": attention by visible pairs, the layers for 2L positions, the head for
supervised rows, forward plus backward. Utilisation is relative to the chip's dense bf16 peak from its data sheet; in
FP8 as well, but there the target is a number of TFLOP/s. Each kind of layers runs in its own process through
`benchmarks.step`, and is written as soon as it is measured. Prints utilisation, target and their ratio.
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

LOCAL, ENGINE, FP8 = "local", "transformer_engine", "transformer_engine, FP8"
_SETTINGS = {
    LOCAL: ("execution.layers=local",),
    ENGINE: ("execution.layers=transformer_engine",),
    FP8: ("execution.layers=transformer_engine", "execution.fp8=hybrid"),
}
KINDS = tuple(_SETTINGS)
# The best published figure for AR pretraining of an 8B model on H100s.
TARGET = 0.52
# TFLOP/s of an AR step in FP8.
FP8_TARGET = 744.0


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        UserError: no kind of layers could be measured.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="shape of the layers (default: 8b)")
    parser.add_argument("--layers", type=int, help="number of layers (default: as many as fit)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of layers (default: all)")
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
        found = _missing(kind, device) or _step(kind, options)
        figures["kinds"][kind] = found if "missing" in found else {**found, **utilisation(found, peak, kind)}
        path = write_result(result_name("mfu", device), figures, options.results)
    show(figures)
    print(path)
    if not any("utilisation" in found for found in figures["kinds"].values()):
        raise UserError("--kinds: none of them could be measured; the reasons are in the table")


def _missing(kind: str, device: torch.device) -> dict[str, Any]:
    if kind == LOCAL:
        return {}
    if find_spec("transformer_engine") is None:
        return {"missing": "not installed"}
    return {} if device.type == "cuda" else {"missing": "not measured: needs CUDA"}


def _step(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nld-mfu-") as folder:
        words = ["--shape", options.shape, "--steps", str(options.steps), "--results", folder]
        words += ["--layers", str(options.layers)] if options.layers else []
        command = [sys.executable, "-m", "benchmarks.step", *words, *_SETTINGS[kind], *options.overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last_line = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            return {"missing": f"failed: {last_line[:200]}"}
        (path,) = Path(folder).glob("*.json")
        figures: dict[str, Any] = json.loads(path.read_text())["figures"]
        return figures


def utilisation(figures: dict[str, Any], peak: float, kind: str) -> dict[str, Any]:
    """What a step makes of the chip.

    Args:
        figures: of `benchmarks.step`.
        peak: dense bf16 operations per second.
        kind: of the layers.

    Returns:
        By kind of step: `utilisation` of the peak, `tflops` per second, and `of_target`, which a joint step in FP8 does
        not have.
    """
    speed = {step: figures["operations"][step] / figures["seconds"][step] for step in ("ar", "joint")}
    share = {step: value / peak for step, value in speed.items()}
    of_target = {step: value / TARGET for step, value in share.items()}
    if kind == FP8:
        of_target = {"ar": speed["ar"] / 1e12 / FP8_TARGET}
    tflops = {step: value / 1e12 for step, value in speed.items()}
    return {"peak_tflops": peak / 1e12, "utilisation": share, "tflops": tflops, "of_target": of_target}


def target_of(kind: str, step: str) -> str:
    """The target in words; empty where there is none."""
    if kind != FP8:
        return f"above {TARGET:.0%}"
    return f"{FP8_TARGET:.0f} TFLOP/s" if step == "ar" else ""


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    title = f"of {figures['peak_tflops']:.0f} TFLOP/s"
    table = Table("layers", "step", "utilisation", "TFLOP/s", "target", "of target", title=title)
    for kind, found in figures["kinds"].items():
        if "missing" in found:
            table.add_row(kind, "", found["missing"])
            continue
        for step, share in found["utilisation"].items():
            of_target = f"{found['of_target'][step]:.2f}" if step in found["of_target"] else ""
            table.add_row(kind, step, f"{share:.1%}", f"{found['tflops'][step]:.0f}", target_of(kind, step), of_target)
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
