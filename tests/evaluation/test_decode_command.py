"""`nld-decode`: the records of every mode, for every kind of checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_helpers import MODES, SHORT, THREE
from tiny_runs import newest_checkpoint

from nld_train.commands.decode import main


@pytest.mark.parametrize("mode", MODES)
def test_an_object_per_prompt(records: Any, trained_export: Path, prompts_file: Path, mode: str) -> None:
    found = records(trained_export, "--prompts", prompts_file, "--mode", mode)
    assert [record["prompt"] for record in found] == list(THREE)
    for record in found:
        assert record["new_tokens"] == len(record["token_ids"]) <= 20
        assert record["tokens_per_forward"] == record["new_tokens"] / record["forwards"]
        assert record["prefill"] == 1
        assert record["text"] == bytes(token - 4 for token in record["token_ids"] if token > 3).decode(errors="replace")
    alone = [records(trained_export, "--prompt", text, "--mode", mode)[0] for text in THREE]
    assert alone == found
    assert records(trained_export, "--prompts", prompts_file, "--mode", mode, "--batch-size", 2) == found


def test_a_comparison_has_every_mode(records: Any, trained_export: Path, prompts_file: Path) -> None:
    found = records(trained_export, "--prompts", prompts_file, "--compare")
    assert [record["mode"] for record in found] == [mode for mode in MODES for _ in THREE]
    for mode in MODES:
        agreements = [record.pop("agreement") for record in found if record["mode"] == mode]
        assert mode == "diffusion" or agreements == [1.0] * len(THREE)
        assert [record for record in found if record["mode"] == mode] == records(
            trained_export, "--prompts", prompts_file, "--mode", mode
        )


@pytest.mark.parametrize(
    "sampled",
    [
        pytest.param((), id="greedy", marks=pytest.mark.long),
        pytest.param(("--temperature", 0.8, "--top-k", 40), id="sampled"),
    ],
)
@pytest.mark.parametrize("length", [pytest.param(2, marks=pytest.mark.long), 7])
def test_runs_checkpoints_exports_and_imports_decode_the_same(
    records: Any,
    trained: Path,
    trained_export: Path,
    imported: Path,
    prompts_file: Path,
    sampled: tuple[object, ...],
    length: int,
) -> None:
    words = ("--prompts", prompts_file, "--compare", *sampled, "--block-length", length)
    found = [records(path, *words) for path in (trained, newest_checkpoint(trained), trained_export, imported)]
    # The last prompt is admitted to the slot of one that has finished.
    found += [records(path, *words, "--batch-size", 2) for path in (trained, trained_export)]
    assert all(other == found[0] for other in found[1:])
    assert any(record["new_tokens"] > 10 for record in found[0])


def test_seeds_are_those_of_the_prompts(records: Any, trained_export: Path, prompts_file: Path) -> None:
    sampled = ("--mode", "linear", "--temperature", 1, "--top-k", 50, "--top-p", 0.9)
    found = records(trained_export, "--prompts", prompts_file, *sampled, "--seed", 3)
    assert records(trained_export, "--prompts", prompts_file, *sampled, "--seed", 3, "--batch-size", 1) == found
    assert records(trained_export, "--prompt", THREE[2], *sampled, "--seed", 5) == found[2:]
    assert records(trained_export, "--prompts", prompts_file, *sampled, "--seed", 9) != found


def test_texts_that_stop(records: Any, trained_export: Path) -> None:
    """At the first of two, in every mode, with the token that completes it; a special token is one of them."""
    for mode in MODES:
        words = ("--prompt", "seven times", "--mode", mode)
        (whole,) = records(trained_export, *words)
        text, ids = whole["text"], whole["token_ids"]
        assert len(text) > 12
        stop = text[6:8]
        (found,) = records(trained_export, *words, "--stop", "never there", "--stop", stop)
        assert found["finish"] == "stop"
        assert found["text"] == text[: text.index(stop) + 2]
        assert found["token_ids"] == ids[: len(found["token_ids"])]
        (same,) = records(trained_export, *words, "--stop", "<pad>")
        assert same["token_ids"] == (ids[: ids.index(0) + 1] if 0 in ids else ids)


def test_the_ar_weight_mixes_both_heads(records: Any, trained_export: Path, prompts_file: Path) -> None:
    words = ("--prompts", prompts_file, "--ar-weight", 0.2)
    alone = records(trained_export, *words, "--mode", "quadratic")
    assert [record["mode"] for record in alone] == ["quadratic, AR weight 0.2"] * 3
    compared = records(trained_export, *words, "--compare")
    assert min([record.pop("agreement") for record in compared[-3:]]) < 1
    assert compared[-3:] == alone
    assert all(record["agreement"] == 1 for record in compared if record["mode"] == "linear")


def test_without_a_block_length_it_is_that_of_the_training(
    trained: Path, trained_export: Path, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`diffusion.block_size` is 8 in the run, and so in its export and in an import of that."""
    for path in (trained, newest_checkpoint(trained), trained_export, imported):
        forwards = []
        for given in ((), ("--block-length", "8"), ("--block-length", "4")):
            words = (
                str(path),
                "--mode",
                "diffusion",
                "--threshold",
                "0",
                *SHORT,
                "--prompt",
                "seven",
                "--json",
                *given,
            )
            assert main(list(words)) == 0
            forwards.append(json.loads(capsys.readouterr().out)["forwards"])
        assert forwards[0] == forwards[1] != forwards[2]
