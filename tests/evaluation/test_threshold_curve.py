"""`nld-curve`: tokens per forward and agreement against the threshold."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from command_helpers import PROMPTS, Decoded, Report, per_forward
from rich.console import Console

from nld_train.commands import curve
from nld_train.evaluation.threshold_curve import print_curves


def test_the_curve_is_what_nld_decode_says(reported: Report, decoded: Decoded, trained_export: Path) -> None:
    found = reported(curve.main, trained_export, "--block-length", 8, "--thresholds", "1,0,0.3")
    assert set(found["curves"]) == {"confidence"}
    points = found["curves"]["confidence"]
    assert [point["threshold"] for point in points] == [0.0, 0.3, 1.0]
    for point in points:
        records = decoded(trained_export, "--compare", "--block-length", 8, "--threshold", point["threshold"])
        assert point["tokens_per_forward"] == pytest.approx(per_forward(records, "diffusion"))
        texts = {
            mode: [record["token_ids"] for record in records if record["mode"] == mode] for mode in ("ar", "diffusion")
        }
        same = sum(a == b for x, y in zip(*texts.values(), strict=True) for a, b in zip(x, y, strict=False))
        longest = sum(max(len(x), len(y)) for x, y in zip(*texts.values(), strict=True))
        assert point["agreement"] == pytest.approx(same / longest)
    assert points[0]["accepted_length"] > points[-1]["accepted_length"] >= 1.0
    # A certainty of exactly 1 is all that a threshold of 1 commits beyond the best position.
    assert points[-1]["agreement_with_one_per_pass"] > 0.9
    assert found["one_per_pass"]["accepted_length"] == 1.0


def test_the_curve_of_prompts_with_categories_is_also_a_mean_over_them(
    reported: Report, trained_export: Path, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    texts = [("sums", "seven times"), ("ends", "that ends here"), ("sums", "eight is")]
    path.write_text("".join(json.dumps({"category": name, "prompt": text}) + "\n" for name, text in texts))
    found = reported(curve.main, trained_export, "--prompts", path, "--block-length", 8, "--thresholds", "0.3,1")
    for point in [*found["curves"]["confidence"], found["one_per_pass"]]:
        for key in ("tokens_per_forward", "accepted_length", "agreement", "agreement_with_one_per_pass"):
            both = [one[key] for one in point["categories"].values()]
            assert point["mean_over_categories"][key] == pytest.approx(sum(both) / 2)
    console = Console(width=80, file=io.StringIO())
    print_curves(console, found)
    assert "mean over categories\n" in console.file.getvalue()


def test_the_table_fits_a_terminal(reported: Report, trained: Path) -> None:
    found = reported(curve.main, trained, "--block-length", 8, "--thresholds", "0.25,1")
    console = Console(width=80, file=io.StringIO())
    print_curves(console, found)
    lines = [line.replace("\u2502", " ").split() for line in console.file.getvalue().splitlines()]
    point = found["curves"]["confidence"][0]
    shares = [f"{point[key]:.1%}" for key in ("agreement", "agreement_with_one_per_pass")]
    assert [
        "confidence",
        "0.25",
        f"{point['tokens_per_forward']:.2f}",
        f"{point['accepted_length']:.2f}",
        *shares,
    ] in lines


def test_prompts_as_ids_are_those_of_their_text(trained_export: Path, reported: Report, tmp_path: Path) -> None:
    """As `nld-data prompts` writes conversations, whose text alone need not give their ids."""
    rows = [{"prompt": "anything", "prompt_token_ids": [byte + 4 for byte in text.encode()]} for text in PROMPTS]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--block-length", 4, "--thresholds", "0.3,1")
    found = reported(curve.main, trained_export, *options, "--prompts", tmp_path / "ids.jsonl")
    assert found == reported(curve.main, trained_export, *options)
