"""`nld-acceptance`: accepted length by category of prompts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Report, refusal
from rich.console import Console

from nld_train.commands import acceptance
from nld_train.evaluation import acceptance as acceptance_report
from nld_train.evaluation.by_category import FOUR, MEAN_OF_FOUR, SPEED_BENCH, category_means, mean_figures

QUESTIONS = [
    {"question_id": "1", "category": "sums", "turns": ["seven times"], "multiturn": False},
    {"question_id": "2", "category": "sums", "turns": ["eight is", "and seven", "here"], "multiturn": True},
    {"question_id": "3", "category": "ends", "messages": [{"role": "user", "content": "that ends here"}]},
    {"question_id": "4", "category": "ends", "prompt": "is and that", "sub_category": "none"},
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def test_acceptance_by_category(
    reported: Report, questions: Path, trained: Path, trained_export: Path, tmp_path: Path
) -> None:
    options = ("--prompts", questions, "--modes", "linear", "quadratic", "diffusion", "--block-lengths", "2,4")
    found = reported(acceptance.main, trained, *options, "--threshold", 0.3)
    assert found == reported(acceptance.main, trained_export, *options, "--threshold", 0.3)
    variants = found["variants"]
    assert [(one["mode"], one["block_length"]) for one in variants] == [
        (mode, length) for mode in ("linear", "quadratic", "diffusion") for length in (2, 4)
    ]
    for one in variants:
        assert list(one["categories"]) == ["sums", "ends", "overall"]
        turns = [figures["turns"] + figures["skipped_turns"] for figures in one["categories"].values()]
        assert turns == [4, 2, 6]
        overall = one["categories"]["overall"]
        assert overall["new_tokens"] == sum(one["categories"][name]["new_tokens"] for name in ("sums", "ends"))
        assert 1 <= overall["accepted_length"] <= one["block_length"]
        for key in ("accepted_length", "tokens_per_forward"):
            sums, ends = (one["categories"][name][key] for name in ("sums", "ends"))
            assert one["mean_over_categories"][key] == pytest.approx((sums + ends) / 2)
        if one["mode"] == "quadratic":
            # One forward per cycle; the first token of each turn comes from the prefill.
            cycles = overall["new_tokens"] / overall["tokens_per_forward"]
            assert overall["accepted_length"] == pytest.approx((overall["new_tokens"] - overall["turns"]) / cycles)
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS if question["category"] == "sums"))
    again = reported(acceptance.main, trained, "--prompts", alone, *options[2:], "--threshold", 0.3, "--batch-size", 1)
    for one, other in zip(variants, again["variants"], strict=True):
        assert one["categories"]["sums"] == other["categories"]["sums"] == other["categories"]["overall"]


def test_a_turn_follows_the_answers_before_it(trained: Path, tmp_path: Path, reported: Report) -> None:
    """A second turn counts what a prompt with both turns and the first answer counts."""
    options = ("--modes", "linear", "--block-lengths", "4")

    def figures(*turns: str) -> dict[str, Any]:
        path = tmp_path / "turns.jsonl"
        path.write_text(json.dumps({"category": "a", "turns": turns}) + "\n")
        found = reported(acceptance.main, trained, "--prompts", path, *options)
        return found["variants"][0]["categories"]["a"]

    first, both = figures("eight is"), figures("eight is", "and")
    assert both["turns"] == 2
    assert both["new_tokens"] > first["new_tokens"]
    assert figures("eight is", *["and"] * 40)["skipped_turns"] > 0


def test_the_tables_fit_a_terminal(reported: Report, questions: Path, trained: Path) -> None:
    found = reported(acceptance.main, trained, "--prompts", questions, "--block-lengths", "2,3,4")
    console = Console(width=80, file=io.StringIO())
    acceptance_report.print_acceptance(console, found)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for mode in ("diffusion", "linear", "quadratic"):
        assert f"{mode}: accepted length, then tokens per forward" in lines
        variants = [one["categories"]["sums"] for one in found["variants"] if one["mode"] == mode]
        cells = [f"{one[key]:.2f}" for key in ("accepted_length", "tokens_per_forward") for one in variants]
        assert any(line.replace("\u2502", " ").split() == ["sums", "4", *cells] for line in lines)
        means = [one["mean_over_categories"] for one in found["variants"] if one["mode"] == mode]
        cells = [f"{one[key]:.2f}" for key in ("accepted_length", "tokens_per_forward") for one in means]
        assert any(line.replace("\u2502", " ").split() == ["mean", "over", "2", *cells] for line in lines)


def test_a_category_with_many_turns_decides_only_the_pooled_figures() -> None:
    """Three categories, of which one has most tokens and one has none."""
    categories = {
        "many": {"accepted_length": 1.0, "tokens_per_forward": 0.5, "new_tokens": 900, "turns": 9},
        "few": {"accepted_length": 5.0, "tokens_per_forward": 2.5, "new_tokens": 10, "turns": 1},
        "none": {"accepted_length": None, "tokens_per_forward": 0.0, "new_tokens": 0, "turns": 0},
    }
    assert mean_figures(categories) == {"accepted_length": 3.0, "tokens_per_forward": 1.5}
    assert mean_figures({"none": categories["none"]}) == {}


def of_speed_bench(**changes: dict[str, Any]) -> dict[str, Any]:
    """Figures of the eleven categories, by hand: the categories of the second mean have much longer ones."""
    own = {name: 9.0 if name in FOUR else float(number) for number, name in enumerate(SPEED_BENCH)}
    return {name: {"accepted_length": value, "new_tokens": 5, "turns": 1} for name, value in own.items()} | changes


def test_speed_bench_has_two_means() -> None:
    assert len(set(SPEED_BENCH)) == 11
    means = category_means(of_speed_bench())
    # humanities 1, qa 4, rag 5, roleplay 7, stem 8, summarization 9, writing 10
    assert means["mean_over_categories"] == {"accepted_length": pytest.approx((44 + 36) / 11)}
    assert means["mean_over_coding_math_reasoning_multilingual"] == {"accepted_length": 9.0}
    nothing = {"accepted_length": None, "new_tokens": 0, "turns": 0}
    assert list(category_means(of_speed_bench(math=nothing))) == ["mean_over_categories"], "three are not the four"
    assert list(category_means({"sums": of_speed_bench()["math"]})) == ["mean_over_categories"]


def table_of(categories: dict[str, Any]) -> str:
    figures = {name: {**one, "tokens_per_forward": 1.5} for name, one in categories.items()}
    overall = {"accepted_length": 2.0, "tokens_per_forward": 1.0, "new_tokens": 55, "turns": 11}
    variant = {"mode": "linear", "block_length": 32, "adapter": False, **category_means(figures)}
    console = Console(width=80, file=io.StringIO())
    report = {"variants": [{**variant, "categories": {**figures, "overall": overall}}]}
    acceptance_report.print_acceptance(console, report)
    return " ".join(console.file.getvalue().replace("\u2502", " ").split())


def test_both_means_are_rows_of_the_table() -> None:
    found = table_of(of_speed_bench())
    assert " mean over 11 7.27 1.50 " in found
    assert " mean over 4 9.00 1.50 " in found
    assert "mean over 4: coding, math, reasoning, multilingual" in found
    assert MEAN_OF_FOUR not in found
    assert "missing" not in found


def test_what_is_missing_of_speed_bench_is_named() -> None:
    """A category that is not in the file, and one whose turns have all been skipped; not for other categories."""
    skipped = {"accepted_length": None, "new_tokens": 0, "turns": 0}
    some = of_speed_bench(rag=skipped)
    del some["writing"]
    found = table_of(some)
    assert " mean over 9 " in found
    assert "missing of SPEED-Bench: rag, writing" in found
    assert "missing" not in table_of({**some, "poems": some["math"]})


BAD_LINES = [
    ("not json", ":1: not JSON"),
    ("[]", ":1: must be a JSON object"),
    ('{"turns": ["a"]}', ':1: is not an object with a "category"'),
    ('{"category": "a"}', ':1: has no text under "turns"'),
    ('{"category": "a", "turns": []}', ':1: has no text under "turns"'),
    ('{"category": "a", "turns": ["b", ""]}', ':1: has no text under "turns"'),
    ('{"category": "a", "messages": [{"role": "system", "content": "b"}]}', ':1: has no text under "turns"'),
    (
        '{"category": "a", "turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]}',
        ":1: holds a placeholder in place of its text",
    ),
    ('{"category": "a", "turns": ["one <mask> two"]}', "prompt 0 contains the mask token (id 3)"),
    (json.dumps({"category": "a", "turns": ["x" * 96]}), "prompt 0 has 96 tokens, which leaves no room"),
    ('{"category": "overall", "turns": ["a"]}', ":1: the category 'overall' is the report's name for all"),
    ("", "holds no prompt"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_questions_that_are_none(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line + "\n" if line else "")
    assert message in refusal(capsys, acceptance.main, str(trained), "--prompts", str(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--block-lengths", "8,0"], "block_length: 0 is not 1 or more"),
        (
            ["--block-lengths", "8,1000000000", "--max-new-tokens", "8"],
            "block_length: 1000000000 is longer than the context of 96",
        ),
        (["--threshold", "2"], "threshold: 2.0 is not in [0, 1]"),
        (["--adapter", "--max-new-tokens", "16"], "this model has no drafter adapter"),
        (["--policy", "sampler"], "holds no trained sampler"),
        (
            ["--adapter", "--modes", "quadratic"],
            "--adapter: mode 'quadratic' does not draft with one; only linear does",
        ),
        (["--modes", "linear", "quadratic", "--threshold", "0.9"], "--threshold: none of the modes linear, quadratic"),
        (["--modes", "ar", "--block-lengths", "8"], "--block-lengths: mode 'ar' has no blocks"),
        (["--max-new-tokens", "96"], "96 do not fit into the context of 96"),
        (["--output", "."], "--output .: is a folder; name a file"),
        (["--batch-size", "0"], "--batch-size: 0 is not 1 or more"),
    ],
)
def test_mistakes_in_acceptance(
    trained: Path, questions: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in refusal(capsys, acceptance.main, str(trained), "--prompts", str(questions), *words)
