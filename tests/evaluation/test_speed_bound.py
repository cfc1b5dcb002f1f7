"""`nld-bound`: the oracle beside every decode mode."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_helpers import Decoded, Report, per_forward
from rich.console import Console

from nld_train.commands import bound
from nld_train.evaluation.oracle import EXHAUSTIVE_MASKS, OracleBlock
from nld_train.evaluation.speed_bound import block_figures, print_bound


@pytest.fixture(scope="module")
def bounds(reported: Report, trained: Path) -> list[dict[str, Any]]:
    return bounds_at(reported, trained, 1, 4)


def bounds_at(reported: Report, trained: Path, *lengths: int) -> list[dict[str, Any]]:
    words = ("--block-lengths", ",".join(map(str, lengths)), "--threshold", 0.3)
    return list(reported(bound.main, trained, *words)["bounds"])


# The oracle searches longer for longer blocks.
@pytest.mark.parametrize("lengths", [(1, 4), pytest.param((7,), marks=pytest.mark.long)], ids=str)
def test_the_bound_stands_above_what_ends_at_its_target(
    reported: Report, bounds: list[dict[str, Any]], decoded: Decoded, trained: Path, lengths: tuple[int, ...]
) -> None:
    found = bounds if lengths == (1, 4) else bounds_at(reported, trained, *lengths)
    assert [one["block_length"] for one in found] == list(lengths)
    for one in found:
        variants, blocks = one["variants"], one["oracle_blocks"]
        assert list(variants)[:3] == ["oracle", "greedy acceptance", "one per pass"]
        slow, greedy, oracle = variants["one per pass"], variants["greedy acceptance"], variants["oracle"]
        assert greedy["tokens_per_forward"] >= slow["tokens_per_forward"]
        assert oracle["tokens_per_forward"] >= slow["tokens_per_forward"]
        assert slow["accepted_length"] == 1.0
        assert (oracle["new_tokens"], oracle["agreement"]) == (slow["new_tokens"], slow["agreement"])
        assert (one["block_start"], one["safety"]) == ("masks", "greedy")
        if blocks["policies"]["greedy acceptance"]["same"] == blocks["blocks"]:
            assert oracle == greedy, "where greedy acceptance is safe from the start, it is what the oracle does"
        assert variants["linear"]["agreement"] == variants["quadratic"]["agreement"] == 1.0
        records = decoded(trained, "--compare", "--block-length", one["block_length"], "--threshold", 0.3)
        for mode, name in (("diffusion", "diffusion, threshold 0.3"), ("linear", "linear"), ("quadratic", "quadratic")):
            assert variants[name]["tokens_per_forward"] == pytest.approx(per_forward(records, mode))
        assert blocks["blocks"] >= blocks["searched"] >= blocks["longer_than_shortest"]
        assert (blocks["searched"] == blocks["blocks"]) == (one["block_length"] <= EXHAUSTIVE_MASKS)
        if one["block_length"] > 1:
            assert slow["tokens_per_forward"] < 1.0 < oracle["tokens_per_forward"] * 1.5
            policy = blocks["policies"]["threshold 0.3"]
            assert blocks["blocks"] >= policy["same"] >= policy["fewer"]
            # Passes that write the cache are counted in one figure and not in the other.
            assert oracle["accepted_length"] >= 1.0
            assert oracle["accepted_length"] == pytest.approx(blocks["masks"] / blocks["passes"], rel=0.2)


def test_our_bound_by_keys(reported: Report, trained: Path, bounds: list[dict[str, Any]]) -> None:
    """From the AR prediction, continued with one token per pass: the text is that of diffusion itself."""
    words = ("--block-lengths", "4", "--block-start", "seed", "--safety", "one-per-pass", "--threshold", "1")
    (found,) = reported(bound.main, trained, *words)["bounds"]
    assert (found["block_start"], found["safety"]) == ("seed", "one-per-pass")
    assert found["variants"]["one per pass"] == found["variants"]["diffusion, threshold 1"]
    assert found["oracle_blocks"]["masks"] < bounds[1]["oracle_blocks"]["masks"], "the seed is no mask"
    assert found["variants"]["oracle"]["tokens_per_forward"] >= found["variants"]["one per pass"]["tokens_per_forward"]


def test_the_bound_of_prompts_with_categories_is_also_a_mean_over_them(
    reported: Report, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    texts = [("sums", "seven times"), ("ends", "that ends here"), ("sums", "eight is")]
    path.write_text("".join(json.dumps({"category": name, "turns": [text]}) + "\n" for name, text in texts))
    words = ("--prompts", path, "--block-lengths", "4")
    found = reported(bound.main, trained, *words)
    for figures in found["bounds"][0]["variants"].values():
        assert list(figures["categories"]) == ["sums", "ends"]
        assert figures["new_tokens"] == sum(one["new_tokens"] for one in figures["categories"].values())
        for key in ("tokens_per_forward", "accepted_length"):
            both = [one[key] for one in figures["categories"].values()]
            assert figures["mean_over_categories"][key] == pytest.approx(sum(both) / 2)
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps({"prompt": "that ends here"}) + "\n")
    (same,) = reported(bound.main, trained, "--prompts", alone, "--block-lengths", "4")["bounds"]
    for name, figures in same["variants"].items():
        assert figures == found["bounds"][0]["variants"][name]["categories"]["ends"]
    console = Console(width=80, file=io.StringIO())
    print_bound(console, found["bounds"])
    assert "mean over categories" in " ".join(console.file.getvalue().replace("\u2502", " ").split())


def block(masks: int, passes: int, fewest: int | None = None, complete: bool = True, **policies: Any) -> OracleBlock:
    return OracleBlock(
        target=torch.zeros(masks + 1).long(),
        masks=masks,
        passes=passes,
        forwards=10 * masks,
        complete=complete,
        exhausted=masks > 6,
        fewest=fewest,
        policies=policies,
    )


def test_how_often_a_policy_needed_fewer_passes_for_the_same_target() -> None:
    """Blocks written out by hand; those that a stop left incomplete, and those without a mask, do not count."""
    blocks = [
        block(6, 3, fewest=2, fast=(2, True), slow=(6, True)),
        block(6, 2, fewest=2, fast=(1, False), slow=(6, True)),
        block(9, 3, fast=(3, True), slow=(9, False)),
        block(3, 3, fewest=1, complete=False, fast=(1, True), slow=(1, True)),
        block(0, 0, fewest=0, fast=(0, True), slow=(0, True)),
    ]
    assert block_figures(blocks) == {
        "blocks": 3,
        "masks": 7.0,
        "passes": pytest.approx(8 / 3),
        "forwards": 70.0,
        "exhausted": 1,
        "searched": 2,
        "longer_than_shortest": 1,
        "policies": {"fast": {"same": 2, "fewer": 1}, "slow": {"same": 2, "fewer": 0}},
    }
    assert block_figures([])["passes"] is None


def test_the_tables_fit_a_terminal(bounds: list[dict[str, Any]]) -> None:
    """Every figure on one line of 80, and how often a policy ended at the same target in fewer passes."""
    console = Console(width=80, file=io.StringIO())
    print_bound(console, bounds)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for one in bounds:
        for name, figures in one["variants"].items():
            assert any(f" {name} " in line and f" {figures['tokens_per_forward']:.2f} " in line for line in lines)
    policy = bounds[1]["oracle_blocks"]["policies"]["threshold 0.3"]
    (same,) = (line for line in lines if "threshold 0.3: same target " in line)
    (fewer,) = (line for line in lines if "threshold 0.3: same target, fewer passes" in line)
    assert f" {policy['same']} " in same
    assert f" {policy['fewer']} " in fewer
