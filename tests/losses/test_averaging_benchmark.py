"""`global` averaging does what it is for: its diffusion gradient varies far less over noise draws than `sequence`'s."""

from __future__ import annotations

import json
from pathlib import Path

from forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--draws", "12", "--length", "64", "--layers", "1", "--train-steps", "12", "--levels", "independent"]


def test_global_averaging_has_far_less_gradient_variance_than_sequence(tmp_path: Path) -> None:
    done = run_forked(["-m", "benchmarks.averaging", *SMALL, "--results", str(tmp_path)], 300, ROOT)
    assert done.status == 0, done.output
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
