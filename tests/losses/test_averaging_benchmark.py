"""`global` averaging does what it is for: its diffusion gradient varies far less over noise draws than `sequence`'s."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--draws", "12", "--length", "64", "--layers", "1", "--train-steps", "12", "--levels", "independent"]


def test_global_averaging_has_far_less_gradient_variance_than_sequence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.averaging", *SMALL, "--results", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True)
    kept = json.loads((tmp_path / "averaging.json").read_text())
    assert kept["command"].endswith(" ".join([*SMALL, "--results", str(tmp_path)]))
    ratios = {
        (row["weights"], row["averaging"]): row["gradient_variance_over_squared_mean"]
        for row in kept["figures"]["rows"]
    }
    assert len(ratios) == 8
    for weights in ("random", "trained"):
        assert 0 < ratios[weights, "global"] < 0.2 * ratios[weights, "sequence"]
        assert 0 < ratios[weights, "contributing"] < 0.2 * ratios[weights, "sequence"]
