"""The benchmark of decoding times every mode on the same text, and its ratios follow from its seconds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

SETTINGS = ["--repeats", "2", "--batch-sizes", "1", "16", "--new-tokens", "6", "--prompt-tokens", "12"]


@pytest.fixture(scope="module")
def figures(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from benchmarks.decode import main

    folder = tmp_path_factory.mktemp("benchmark")
    main([str(trained), *SETTINGS, "--prompts-per-slot", "2", "--block-length", "4", "--results", str(folder)])
    return json.loads((folder / "decode.json").read_text())["figures"]


def test_every_mode_was_timed(figures: Any) -> None:
    found = {(row["engine"], row["mode"]) for row in figures["rows"]}
    modes = ("ar", "diffusion", "linear", "quadratic")
    assert found == {("transformers", "ar")} | {(name, mode) for name in ("in tree", "export") for mode in modes}
    for row in figures["rows"]:
        assert len(row["seconds_wall"]) == len(row["seconds_processor"]) == 2
        assert row["tokens_per_second_wall"] == row["batch_size"] * 2 * 6 / median(row["seconds_wall"])
        # Every mode but diffusion writes AR's text, in every engine.
        assert row["mode"] == "diffusion" or row["agreement"] == 1


def test_ratios_follow_from_the_seconds(figures: Any) -> None:
    seconds = {(row["engine"], row["mode"], row["batch_size"]): row["seconds_wall"] for row in figures["rows"]}
    targets = {target["name"]: target for target in figures["targets"]}
    over = zip(seconds["transformers", "ar", 16], seconds["in tree", "ar", 16], strict=True)
    assert targets["AR in tree over generate, 16 rows"]["wall"] == pytest.approx(median(a / b for a, b in over))
    assert targets["AR in tree over generate, 16 rows"]["limit"] == 1
    batch = zip(seconds["export", "linear", 1], seconds["export", "linear", 16], strict=True)
    found = targets["16 rows over one, export, linear"]
    assert found["wall"] == pytest.approx(median(16 * one / sixteen for one, sixteen in batch))
    (row,) = [r for r in figures["rows"] if (r["engine"], r["mode"], r["batch_size"]) == ("in tree", "linear", 1)]
    assert targets["linear over AR, in tree, 1 rows"]["limit"] == pytest.approx(0.85 * row["accepted_length"] / 2)
