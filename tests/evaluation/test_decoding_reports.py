"""`nld-curve`, `nld-bound`, `nld-sampler` and `nld-acceptance`, and the sampler in `nld-decode`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import newest_checkpoint, run_command

from nld_train import acceptance, bound, curve, decode, sampler

PROMPTS = ("seven times", "r\u00e9sum\u00e9 is", "and that ends here", "eight is", "here seven", "is and that")
SHORT = ("--max-new-tokens", "16", "--batch-size", "4")
SMALL = ("--width", "16", "--layers", "1", "--heads", "2", "--components", "4", "--steps", "20")
Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def checkpoint(trained: Path, folder: Path) -> Path:
    """A copy, because a sampler is saved beside the weights."""
    return shutil.copytree(newest_checkpoint(trained), folder / "checkpoint")


@pytest.fixture(scope="module")
def export(trained: Path, folder: Path) -> Path:
    from checkpoint_convert.exporting import export_checkpoint

    export_checkpoint(trained, folder / "export", "nld")
    return folder / "export"


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


@pytest.fixture(scope="module")
def reported(folder: Path, prompts: Path) -> Callable[..., dict[str, Any]]:
    """Runs a command with --json and --plot; returns its figures."""

    def run(main: Main, *words: object) -> dict[str, Any]:
        name = folder / main.__module__.rpartition(".")[2]
        files = ["--json", f"{name}.json"]
        if main is not acceptance.main:
            files += ["--plot", f"{name}.png"]
        given = list(map(str, words))
        if "--prompts" not in given:
            given += ["--prompts", str(prompts)]
        assert main([*given, *SHORT, *files]) == 0
        if main is not acceptance.main:
            assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        found: dict[str, Any] = json.loads(Path(f"{name}.json").read_text())
        return found

    return run


@pytest.fixture(scope="module")
def learned(checkpoint: Path, reported: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What `nld-sampler` said; its sampler lies in the checkpoint."""
    return reported(sampler.main, checkpoint, "--block-length", 8, "--thresholds", "0,0.5,1", "--held-out", 0.4, *SMALL)


@pytest.fixture
def decoded(prompts: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """Objects of `nld-decode --json`."""

    def run(*words: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert decode.main([*map(str, words), "--prompts", str(prompts), *SHORT, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def total(records: list[dict[str, Any]], mode: str) -> float:
    chosen = [record for record in records if record["mode"] == mode]
    return sum(record["new_tokens"] for record in chosen) / sum(record["forwards"] for record in chosen)


def test_the_curve_is_what_nld_decode_says(
    reported: Callable[..., dict[str, Any]], decoded: Callable[..., list[dict[str, Any]]], export: Path
) -> None:
    found = reported(curve.main, export, "--block-length", 8, "--thresholds", "1,0,0.3")
    assert set(found["curves"]) == {"confidence"}
    points = found["curves"]["confidence"]
    assert [point["threshold"] for point in points] == [0.0, 0.3, 1.0]
    for point in points:
        records = decoded(export, "--compare", "--block-length", 8, "--threshold", point["threshold"])
        assert point["tokens_per_forward"] == pytest.approx(total(records, "diffusion"))
        texts = {
            mode: [record["token_ids"] for record in records if record["mode"] == mode] for mode in ("ar", "diffusion")
        }
        same = sum(a == b for x, y in zip(*texts.values(), strict=True) for a, b in zip(x, y, strict=False))
        longest = sum(max(len(x), len(y)) for x, y in zip(*texts.values(), strict=True))
        assert point["agreement"] == pytest.approx(same / longest)
    assert points[0]["accepted_per_pass"] > points[-1]["accepted_per_pass"] >= 1.0
    # A certainty of exactly 1 is all that a threshold of 1 commits beyond the best position.
    assert points[-1]["agreement_with_one_per_pass"] > 0.9
    assert found["one_per_pass"]["accepted_per_pass"] == 1.0


def test_the_bound_stands_above_what_ends_at_its_target(
    reported: Callable[..., dict[str, Any]], decoded: Callable[..., list[dict[str, Any]]], trained: Path
) -> None:
    found = reported(bound.main, trained, "--block-lengths", "1,4,7", "--threshold", 0.3)["bounds"]
    assert [one["block_length"] for one in found] == [1, 4, 7]
    for one in found:
        ways, blocks = one["ways"], one["oracle_blocks"]
        slow, oracle = ways["diffusion, one per pass"], ways["oracle"]
        assert oracle["tokens_per_forward"] >= slow["tokens_per_forward"]
        assert (oracle["new_tokens"], oracle["agreement"]) == (slow["new_tokens"], slow["agreement"])
        assert ways["linear"]["agreement"] == ways["quadratic"]["agreement"] == 1.0
        records = decoded(trained, "--compare", "--block-length", one["block_length"], "--threshold", 0.3)
        for mode, name in (("diffusion", "diffusion, threshold 0.3"), ("linear", "linear"), ("quadratic", "quadratic")):
            assert ways[name]["tokens_per_forward"] == pytest.approx(total(records, mode))
        assert blocks["searched"] == blocks["blocks"] >= blocks["longer_than_shortest"]
        if one["block_length"] > 1:
            rival = blocks["rivals"]["threshold 0.3"]
            assert blocks["blocks"] >= rival["same"] >= rival["fewer"]
            # Passes that write the cache are counted in one figure and not in the other.
            assert oracle["accepted_per_pass"] >= 1.0
            assert oracle["accepted_per_pass"] == pytest.approx(blocks["masks"] / blocks["passes"], rel=0.2)


def test_a_sampler_is_trained_saved_and_judged(learned: dict[str, Any], checkpoint: Path) -> None:
    assert 0 < learned["auc"] <= 1
    assert 0 < learned["auc_of_confidence"] <= 1
    assert (learned["prompts"], learned["held_out_prompts"]) == (4, 2)
    assert set(learned["curves"]) == {"confidence", "sampler"}
    described = json.loads((checkpoint / "trained_sampler" / "sampler.json").read_text())
    assert (described["width"], described["auc"]) == (16, learned["auc"])
    # With a threshold of 0 both commit everything at once.
    assert learned["curves"]["sampler"][0] == learned["curves"]["confidence"][0]


@pytest.mark.usefixtures("learned")
def test_it_plugs_in_as_a_policy(
    decoded: Callable[..., list[dict[str, Any]]],
    reported: Callable[..., dict[str, Any]],
    checkpoint: Path,
    export: Path,
) -> None:
    """Beside the checkpoint's weights; and named, with the export of the same weights."""
    asked = ("--mode", "diffusion", "--policy", "sampler", "--block-length", 8, "--threshold", 0.5)
    found = decoded(checkpoint, *asked)
    named = decoded(export, *asked, "--sampler", checkpoint / "trained_sampler")
    assert [record["token_ids"] for record in found] == [record["token_ids"] for record in named]
    points = reported(curve.main, checkpoint, "--block-length", 8, "--thresholds", "0.5")["curves"]["sampler"]
    assert points[0]["tokens_per_forward"] == pytest.approx(total(found, "diffusion + sampler"))
    ways = reported(bound.main, checkpoint, "--block-lengths", "8", "--threshold", 0.5)["bounds"][0]["ways"]
    assert ways["diffusion, trained sampler"]["tokens_per_forward"] == points[0]["tokens_per_forward"]


@pytest.mark.parametrize(
    ("policy", "passes"),
    [(("number", "--number", "1"), 7), (("number", "--number", "3"), 3), (("steps", "--steps", "2"), 2)],
)
def test_other_policies(
    decoded: Callable[..., list[dict[str, Any]]], trained: Path, policy: tuple[str, ...], passes: int
) -> None:
    """Rows that no stop ends take two blocks: their passes, and the forward that writes the first."""
    asked = ("--mode", "diffusion", "--block-length", 8, "--policy", *policy)
    whole = [record for record in decoded(trained, *asked) if record["finish"] == "length"]
    assert whole
    assert all(record["forwards"] == 2 * passes + 1 for record in whole)


def test_the_sampler_of_another_model_is_refused(
    learned: dict[str, Any], checkpoint: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = sorted(path for path in newest_checkpoint(trained).parent.glob("step_*"))[0]
    assert older.name != newest_checkpoint(trained).name
    asked = ["--prompt", "seven", "--mode", "diffusion", "--policy", "sampler", *SHORT]
    said = refusal(capsys, decode.main, str(older), *asked, "--sampler", str(checkpoint / "trained_sampler"))
    assert "trained for the weights of another model" in said
    for main in (curve.main, bound.main):
        words = ["--prompt", "seven", "--sampler", str(checkpoint / "trained_sampler")]
        assert "trained for the weights of another model" in refusal(capsys, main, str(older), *words)


def refusal(capsys: pytest.CaptureFixture[str], main: Main, *words: str) -> str:
    """The one line of a refused command."""
    capsys.readouterr()
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (decode.main, ["--mode", "diffusion", "--policy", "sampler"], "holds no trained sampler"),
        (decode.main, ["--mode", "diffusion", "--policy", "number", "--number", "0"], "0 positions per pass"),
        (decode.main, ["--mode", "diffusion", "--policy", "steps", "--steps", "0"], "0 denoising passes"),
        (decode.main, ["--mode", "diffusion", "--policy", "entropy", "--entropy", "-1"], "entropy of -1.0"),
        (curve.main, ["--thresholds", "0,1.5"], "threshold: 1.5 is not in [0, 1]"),
        (curve.main, ["--block-length", "0"], "block_length: 0 is not 1 or more"),
        (curve.main, ["--sampler", "nowhere"], "nowhere: holds no trained sampler"),
        (curve.main, ["--batch-size", "0"], "--batch-size: 0 is not 1 or more"),
        (curve.main, ["--plot", "no/where/curve.png"], "there is no folder"),
        (bound.main, ["--threshold", "-1"], "threshold: -1.0 is not in [0, 1]"),
        (bound.main, ["--block-lengths", "4,0"], "block_length: 0 is not 1 or more"),
        (bound.main, ["--budget", "0"], "--budget: 0 is not 1 or more"),
        (sampler.main, ["--width", "0"], "width: 0 is not 1 or more"),
        (sampler.main, ["--steps", "0"], "steps: 0 is not 1 or more"),
        (sampler.main, ["--held-out", "1"], "--held-out: 1.0 is not between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], main: Main, words: list[str], said: str
) -> None:
    assert said in refusal(capsys, main, str(trained), "--prompts", str(prompts), *words)


@pytest.mark.parametrize("main", [curve.main, bound.main, sampler.main])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "prompt 0 is empty"),
        ("x" * 96, "prompt 0 has 96 tokens, which leaves no room in the context of 96"),
        ("one <mask> two", "prompt 0 contains the mask token (id 3)"),
    ],
)
def test_prompts_that_cannot_be_continued(
    trained: Path, capsys: pytest.CaptureFixture[str], main: Main, text: str, said: str
) -> None:
    assert said in refusal(capsys, main, str(trained), "--prompt", text)


def test_a_sampler_needs_prompts_and_masks(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*SHORT, *SMALL, "--sampler", str(tmp_path / "sampler")]
    assert "at least 2 prompts" in refusal(capsys, sampler.main, str(trained), "--prompt", "seven", *words)
    said = refusal(capsys, sampler.main, str(trained), "--prompts", str(prompts), "--block-length", "1", *words)
    assert "needs blocks of 2 or more" in said
    assert not (tmp_path / "sampler").exists()


@pytest.mark.parametrize("main", [curve.main, bound.main, sampler.main, acceptance.main])
def test_without_a_tokenizer(
    export: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Main
) -> None:
    copy = shutil.copytree(export, tmp_path / "bare")
    for file in [*copy.rglob("tokenizer*.json"), *copy.rglob("special_tokens_map.json")]:
        file.unlink()
    questions = prompts.with_name("one_question.jsonl")
    questions.write_text('{"category": "a", "prompt": "seven"}\n')
    given = questions if main is acceptance.main else prompts
    assert "no tokenizer is known of it" in refusal(capsys, main, str(copy), "--prompts", str(given))


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
    reported: Callable[..., dict[str, Any]], questions: Path, trained: Path, export: Path, tmp_path: Path
) -> None:
    asked = ("--prompts", questions, "--modes", "linear", "quadratic", "diffusion", "--block-lengths", "2,4")
    found = reported(acceptance.main, trained, *asked, "--threshold", 0.3)
    assert found == reported(acceptance.main, export, *asked, "--threshold", 0.3)
    readings = found["readings"]
    assert [(one["mode"], one["block_length"]) for one in readings] == [
        (mode, length) for mode in ("linear", "quadratic", "diffusion") for length in (2, 4)
    ]
    for one in readings:
        assert list(one["categories"]) == ["sums", "ends", "overall"]
        turns = [figures["turns"] + figures["skipped_turns"] for figures in one["categories"].values()]
        assert turns == [4, 2, 6]
        overall = one["categories"]["overall"]
        assert overall["new_tokens"] == sum(one["categories"][name]["new_tokens"] for name in ("sums", "ends"))
        assert 1 <= overall["acceptance_length"] <= one["block_length"]
        if one["mode"] == "quadratic":
            # One forward per cycle; the first token comes from the prefill.
            assert overall["tokens_per_forward"] > overall["acceptance_length"]
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS if question["category"] == "sums"))
    again = reported(acceptance.main, trained, "--prompts", alone, *asked[2:], "--threshold", 0.3, "--batch-size", 1)
    for one, other in zip(readings, again["readings"], strict=True):
        assert one["categories"]["sums"] == other["categories"]["sums"] == other["categories"]["overall"]


def test_a_turn_follows_the_answers_before_it(trained: Path, tmp_path: Path, reported: Callable[..., Any]) -> None:
    """A second turn counts what a prompt with both turns and the first answer counts."""
    asked = ("--modes", "linear", "--block-lengths", "4")

    def figures(*turns: str) -> dict[str, Any]:
        path = tmp_path / "turns.jsonl"
        path.write_text(json.dumps({"category": "a", "turns": turns}) + "\n")
        found = reported(acceptance.main, trained, "--prompts", path, *asked)
        return found["readings"][0]["categories"]["a"]

    first, both = figures("eight is"), figures("eight is", "and")
    assert both["turns"] == 2
    assert both["new_tokens"] > first["new_tokens"]
    assert figures("eight is", *["and"] * 40)["skipped_turns"] > 0


BAD_LINES = [
    ("not json", ":1: is no JSON object"),
    ("[]", ':1: is not an object with a "category"'),
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
    ("", "holds no prompt"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_questions_that_are_none(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line + "\n" if line else "")
    assert said in refusal(capsys, acceptance.main, str(trained), "--prompts", str(path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--block-lengths", "8,0"], "block_length: 0 is not 1 or more"),
        (["--threshold", "2"], "threshold: 2.0 is not in [0, 1]"),
        (["--adapter"], "this model has no drafter adapter"),
        (["--policy", "sampler"], "holds no trained sampler"),
        (["--batch-size", "0"], "--batch-size: 0 is not 1 or more"),
    ],
)
def test_mistakes_in_acceptance(
    trained: Path, questions: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in refusal(capsys, acceptance.main, str(trained), "--prompts", str(questions), *words)


@pytest.mark.parametrize("module", ["acceptance", "bound", "curve", "sampler"])
def test_help_imports_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, nld_train.{module} as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = run_command(["-c", program], timeout=60)
    assert f"nld-{module}" in done.output
    assert not {"torch", "rich", "numpy", "yaml"} & set(done.output.splitlines()[-1].split())
