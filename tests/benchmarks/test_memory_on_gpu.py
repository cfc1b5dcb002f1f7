"""The planner's memory against a GPU's. Run with `-m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_planned_memory_is_within_ten_percent_of_the_peak(tmp_path: Path) -> None:
    """Of AR and joint steps of two layers of the 3B model, in a process that has nothing else on the GPU."""
    words = ["--shape", "3b", "--layers", "2", "--steps", "2", "--warmup", "1", "--results", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks.step", *words], cwd=ROOT, check=True, timeout=300)
    ratios = json.loads((tmp_path / "step_3b_gpu.json").read_text())["figures"]["planned_over_peak"]
    assert {kind: pytest.approx(1, abs=0.1) for kind in ("ar", "joint")} == ratios
