"""Commit policies from the command line and in the evaluation harness, an added one among them."""

from __future__ import annotations

import json
from pathlib import Path

import leftmost_policy
import pytest
from command_helpers import FEW, Decoded, refusal

from nld_train.commands import decode
from nld_train.commands import eval as evaluate
from nld_train.decoding.policies.registry import POLICIES

TASKS = Path(__file__).with_name("harness_tasks")
DOCUMENTS = [json.loads(line) for line in (TASKS / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
STOPS = ("is", "s e", "zzz")


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one entry that a new policy takes."""
    monkeypatch.setitem(POLICIES, "dummy", leftmost_policy.DECLARATION)


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        (("number", "--number", "1"), 7),
        (("number", "--number", "3"), 3),
        (("steps", "--steps", "2"), 2),
        (("entropy", "--entropy", "0"), 7),
        (("entropy", "--entropy", "100"), 1),
        (("dummy",), 7),
        (("dummy", "--its-argument", "3"), 3),
    ],
)
def test_other_policies(decoded: Decoded, trained: Path, policy: tuple[str, ...], passes: int) -> None:
    """Sequences that no stop ends take two blocks: their passes, and the forward that appends the first."""
    asked = ("--mode", "diffusion", "--block-length", 8, "--policy", *policy)
    whole = [record for record in decoded(trained, *asked) if record["finish"] == "length"]
    assert whole
    assert all(record["forwards"] == 2 * passes + 1 for record in whole)
    assert all(record["mode"] == f"diffusion + {policy[0]}" for record in whole)


@pytest.mark.usefixtures("added")
def test_an_added_policy_evaluates(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through `nld-eval` and as settings of the harness's model, with as many forwards as `nld-decode` takes."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from nld_train.evaluation.harness.model import NldModel

    questions, output = tmp_path / "questions.jsonl", tmp_path / "results.json"
    questions.write_text("".join(json.dumps({"prompt": document["question"]}) + "\n" for document in DOCUMENTS))
    asked = [str(trained), "--mode", "diffusion", "--block-length", "8", "--max-new-tokens", "20"]
    asked += ["--policy", "dummy", "--its-argument", "3"]
    capsys.readouterr()
    stops = [word for stop in STOPS for word in ("--stop", stop)]
    assert decode.main([*asked, "--prompts", str(questions), "--json", *stops]) == 0
    forwards = sum(json.loads(line)["forwards"] for line in capsys.readouterr().out.splitlines())

    words = [*asked, "--tasks", "local_text", "--include-path", str(TASKS), "--output", str(output)]
    assert evaluate.main(words) == 0
    evaluation = json.loads(output.read_text())["evaluation"]
    assert (evaluation["policy"], evaluation["its_argument"]) == ("dummy", 3)
    assert evaluation["generation"]["local_text"]["forwards"] == forwards

    settings = {"mode": "diffusion", "block_length": 8, "max_new_tokens": 20, "policy": "dummy", "its_argument": 3}
    model = NldModel(str(trained), **settings)
    simple_evaluate(
        model=model,
        tasks=["local_text"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    )
    assert model.figures()["generation"]["local_text"]["forwards"] == forwards
    model.close()


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("mode", "words", "said"),
    [
        ("diffusion", ("--policy", "dummy", "--its-argument", "0"), "its_argument: 0 is not in [1, 100]"),
        ("diffusion", ("--its-argument", "2"), "--its-argument: the policy 'threshold' does not read it"),
        ("linear", ("--its-argument", "2"), "--its-argument: mode 'linear' has no denoising passes"),
        ("linear", ("--policy", "dummy"), "--policy: mode 'linear' has no denoising passes"),
    ],
)
def test_an_added_policy_is_checked_as_declared(
    trained: Path, capsys: pytest.CaptureFixture[str], mode: str, words: tuple[str, ...], said: str
) -> None:
    assert said in refusal(capsys, decode.main, str(trained), "--prompt", "seven", "--mode", mode, *words, *FEW)
