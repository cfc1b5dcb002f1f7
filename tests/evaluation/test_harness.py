"""`nld-eval`: small local tasks through lm-evaluation-harness itself, in every mode, on every kind of checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_helpers import short
from forked import run_ranks

from nld_train.commands import decode, eval

TASKS = Path(__file__).with_name("harness_tasks")
DOCUMENTS = [json.loads(line) for line in (TASKS / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
MODES = ("ar", "diffusion", "linear", "quadratic")
LOCAL = ("local_choice", "local_text", "local_perplexity", "local_sampled")
STOPS = ("is", "s e", "zzz")
Results = dict[str, Any]


def words(checkpoint: Path, mode: str, output: Path, *more: str) -> list[str]:
    common = ["--include-path", str(TASKS), "--log-samples", "--output", str(output), *more]
    samples = ["--samples", "6"] if mode == "diffusion" else []
    return short(checkpoint, "--mode", mode, "--tasks", *LOCAL, *common, *samples)


def evaluated(checkpoint: Path, mode: str, folder: Path, *more: str) -> Results:
    output = folder / f"{mode}{len(list(folder.iterdir()))}.json"
    assert eval.main(words(checkpoint, mode, output, *more)) == 0
    found: Results = json.loads(output.read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def results(trained: Path, folder: Path) -> dict[str, Results]:
    return {mode: evaluated(trained, mode, folder) for mode in MODES}


def answers(results: Results, task: str) -> list[Any]:
    """The model's answer to each document, in order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def likelihoods(results: Results, task: str = "local_choice") -> list[float]:
    return [
        float(part[0][0] if isinstance(part[0], list) else part[0]) for doc in answers(results, task) for part in doc
    ]


def texts(results: Results, task: str = "local_text") -> list[str]:
    return [doc[0][0] for doc in answers(results, task)]


def test_speculative_modes_score_and_generate_like_ar(results: dict[str, Results]) -> None:
    for mode in ("linear", "quadratic"):
        assert likelihoods(results[mode]) == pytest.approx(likelihoods(results["ar"]), abs=1e-4)
        assert texts(results[mode]) == texts(results["ar"])
    assert likelihoods(results["diffusion"]) != pytest.approx(likelihoods(results["ar"]), abs=1e-2)


def test_diffusion_scores_choices_by_ar_likelihood_where_told(
    trained: Path, folder: Path, results: dict[str, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the option, and by a list of tasks, as in the paper's base evaluation; texts are those of diffusion."""
    from nld_train.evaluation.harness import tasks

    own = {"paper": tasks.TaskList(LOCAL, likelihood="ar")}
    monkeypatch.setattr(tasks, "shipped_lists", lambda: own)
    for number, more in enumerate((["--tasks", *LOCAL, "--likelihood", "ar"], ["--tasks", "paper"])):
        output = folder / f"scored{number}.json"
        given = short(trained, "--mode", "diffusion", *more, "--include-path", str(TASKS), "--log-samples")
        assert eval.main([*given, "--output", str(output)]) == 0
        found = json.loads(output.read_text())
        assert likelihoods(found) == pytest.approx(likelihoods(results["ar"]), abs=1e-5)
        assert texts(found) == texts(results["diffusion"])
        assert found["evaluation"]["likelihood"] == "ar"
        assert "bound" not in found["evaluation"]
        assert "samples" not in found["evaluation"]
    assert results["diffusion"]["evaluation"]["likelihood"] == "bound"


def test_every_text_is_decoded_with_or_without_graphs_as_told(
    trained: Path, folder: Path, results: dict[str, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the tasks, and the greedy ones that are compared with continuations."""
    from nld_train.evaluation.harness import generation

    plain, asked = generation.decode, []

    def decode(*arguments: Any) -> Any:
        asked.append(arguments[3].cuda_graphs)
        return plain(*arguments)

    monkeypatch.setattr(generation, "decode", decode)
    for task in ("local_text", "local_choice"):
        asked.clear()
        found = evaluated(trained, "diffusion", folder, "--tasks", task, "--cuda-graphs", "off")
        assert set(asked) == {"off"}
        assert found["evaluation"]["cuda_graphs"] == "off"
    assert results["diffusion"]["evaluation"]["cuda_graphs"] == "auto"


def test_scores_are_those_of_the_model(trained: Path, results: dict[str, Results]) -> None:
    """AR likelihoods of choices and of whole texts, by one full forward each."""
    from nld_train.decoding.algorithms.session import Session
    from nld_train.decoding.load import find_source

    source = find_source(trained)
    encode = lambda text: source.tokenizer.encode(text)  # noqa: E731
    expected, rolling = [], []
    with source.open() as engine:

        def total(prefix: list[int], rest: list[int]) -> float:
            value = 0.0
            for index, token in enumerate(rest):
                logits = Session(engine, [prefix + rest[:index]], 1, 96).prefill([0])[0, 0]
                value += float(logits.log_softmax(-1)[token])
            return value

        for document in DOCUMENTS:
            expected += [total(encode(document["question"]), encode(choice)) for choice in document["choices"]]
        ids = encode((DOCUMENTS[0]["question"] + DOCUMENTS[0]["choices"][0] + " and that ends ") * 4)
        # Longer than the context of 96: its second window sees the last 96 tokens.
        assert len(ids) > 96
        # The tokenizer of bytes puts no BOS token before a text.
        rolling.append(total([2], ids[:96]) + total(ids[len(ids) - 97 : 96], ids[96:]))
    assert likelihoods(results["ar"]) == pytest.approx(expected, abs=1e-3)
    assert likelihoods(results["ar"], "local_perplexity")[0] == pytest.approx(rolling[0], abs=2e-3)


def test_metrics_follow_from_the_scores(results: dict[str, Results]) -> None:
    for mode in MODES:
        found = likelihoods(results[mode])
        best = [max(range(3), key=lambda i, n=n: found[3 * n + i]) for n in range(len(DOCUMENTS))]
        right = [choice == document["answer"] for choice, document in zip(best, DOCUMENTS, strict=True)]
        assert results[mode]["results"]["local_choice"]["acc,none"] == sum(right) / len(right)


@pytest.mark.parametrize("mode", MODES)
def test_texts_are_those_of_nld_decode(
    trained: Path, results: dict[str, Results], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": document["question"]}) + "\n" for document in DOCUMENTS))
    capsys.readouterr()
    options = ["--max-new-tokens", "20", "--json"]
    assert decode.main(short(trained, "--mode", mode, "--prompts", prompts, *options)) == 0
    decoded = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    expected = [min((text.partition(stop)[0] for stop in STOPS), key=len) for text in decoded]
    assert texts(results[mode]) == expected
    assert any(expected)


def test_tokens_per_forward_are_counted(results: dict[str, Results]) -> None:
    for mode in MODES:
        figures = results[mode]["evaluation"]["generation"]["local_text"]
        assert figures["texts"] == len(DOCUMENTS)
        assert figures["tokens_per_forward"] == figures["new_tokens"] / figures["forwards"]
    assert "bound" not in results["ar"]["evaluation"]
    bound = results["diffusion"]["evaluation"]["bound"]
    assert bound["samples"] == 6
    assert 0 < bound["sampled"] < bound["requests"]
    assert 0 < bound["standard_error"] <= bound["largest_standard_error"] < 20


def test_progress_is_shown_on_a_terminal(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind of request to its end, on a console that acts as a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    evaluated(trained, "diffusion", folder)
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", capsys.readouterr().err)
    for what in ("texts", "bounds of log-likelihoods", "greedy continuations"):
        lines = [line for line in shown.splitlines() if what in line]
        done, total = map(int, re.findall(r"(\d+)/(\d+)", lines[-1])[0])
        assert done == total > 0, lines[-1]


@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_batches_and_exports_change_nothing(
    trained: Path, trained_export: Path, results: dict[str, Results], folder: Path, mode: str
) -> None:
    for checkpoint, size in ((trained, "1"), (trained_export, "3")):
        same(results[mode], evaluated(checkpoint, mode, folder, "--batch-size", size))


def same(one: Results, other: Results) -> None:
    for task in ("local_choice", "local_perplexity"):
        assert likelihoods(one, task) == pytest.approx(likelihoods(other, task), abs=1e-3)
    for task in ("local_text", "local_sampled"):
        assert texts(one, task) == texts(other, task)
    for task in LOCAL:
        for name, value in one["results"][task].items():
            if isinstance(value, float):
                assert other["results"][task][name] == pytest.approx(value, rel=1e-4), name
    assert one["evaluation"].get("generation") == other["evaluation"].get("generation")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["megatron", "export"])
def test_two_processes_are_as_one(
    trained: Path, trained_export: Path, results: dict[str, Results], tmp_path: Path, kind: str
) -> None:
    """Of a Megatron checkpoint, and of an export, whose processes have no training group."""
    checkpoint = trained_export if kind == "export" else trained
    output = tmp_path / "results.json"
    done = run_ranks(2, ["-m", "nld_train.commands.eval", *words(checkpoint, "diffusion", output)], timeout=200)
    assert done.status == 0, done.output[-4000:]
    assert done.output.count("|local_choice") == 1
    same(results["diffusion"], json.loads(output.read_text()))


def test_sampling_draws_anew_for_each_document(results: dict[str, Results]) -> None:
    assert texts(results["ar"], "local_sampled") != texts(results["linear"], "local_sampled")
    assert len(set(texts(results["ar"], "local_sampled"))) == len(DOCUMENTS)


def test_it_is_registered(trained: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import nld_train.evaluation.harness.model  # noqa: F401

    found = simple_evaluate(
        model="nld",
        model_args={"checkpoint": str(trained), "mode": "linear", "block_length": 4},
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        limit=2,
        batch_size=2,
    )
    assert found["n-samples"]["local_choice"]["effective"] == 2


@pytest.mark.long
def test_lists_hold_tasks_that_there_are() -> None:
    from lm_eval.tasks import TaskManager

    from nld_train.evaluation.harness.tasks import resolve, shipped_lists

    known = set(TaskManager().all_tasks)
    assert set(shipped_lists()) == {"paper_instruct", "paper_base"}
    for name in shipped_lists():
        assert set(resolve([name]).tasks) <= known
    assert len(resolve(["paper_instruct"]).tasks) == 9
    # Table 8 has twelve. Minerva Math is there, and cannot be loaded beside hydra-core.
    assert len(set(resolve(["paper_base"]).tasks)) == 12
    assert "minerva_math" in known
    assert not [name for name in known if "livecode" in name.lower()], "it would be the tenth of paper_instruct"
