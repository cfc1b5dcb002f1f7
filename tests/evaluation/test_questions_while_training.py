"""An sft stage asks held-out conversations: what it asks, and how many of the answers are exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_sets import END, Turn, random_conversations, write_chat_manifest, write_chat_set
from runs_that_decode import EVALUATION, SHAPES, config_of, decodings, train
from tiny_runs import records_of

from nld_train.commands import status
from nld_train.config.schema import SourceConfig
from nld_train.data.manifest import Manifest, read_manifest
from nld_train.data.questions import questions, questions_of
from nld_train.data.token_index import check_files as check_token_files
from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer, tokenizer_hash
from nld_train.decoding.load import find_source
from nld_train.errors import UserError
from nld_train.evaluation.harness.likelihood import score_exactly
from nld_train.evaluation.harness.requests import Scoring
from nld_train.evaluation.held_out import HeldOut, held_out_of
from nld_train.evaluation.right_answers import ExactMatch
from nld_train.training.loop.preflight import check_files
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.summary import progress_lines

MODES = ("ar", "diffusion", "linear", "quadratic")
STEPS = 60


def chat_set(folder: Path, conversations: Any, name: str = "chat") -> str:
    prefix = write_chat_set(folder / name, conversations)
    write_chat_manifest(prefix, conversations)
    return prefix


def manifest_of(prefix: str) -> Manifest:
    manifest = read_manifest(prefix)
    assert manifest is not None
    return manifest


def changed(prefix: str, **fields: Any) -> None:
    """Writes some fields of a manifest anew."""
    replace(manifest_of(prefix), **fields).write(f"{prefix}.manifest.json")


def letters(text: str) -> list[int]:
    """The ids of `bytes`."""
    return [byte + 4 for byte in text.encode()]


def exchange(question: str, answer: str) -> list[Turn]:
    ids = [*letters(answer), END]
    return [Turn("user", [*letters(question), END]), Turn("assistant", [1, *ids], len(ids))]


TWO = [exchange("seven times?", "forty-two"), [*exchange("so", "is"), *exchange("eight?", "fifty-six")]]


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an sft stage on two conversations."""
    folder = tmp_path_factory.mktemp("memorised")
    prefix = chat_set(folder, TWO)
    save_tokenizer(bytes_tokenizer(), str(folder / "tokenizer"))
    changed(prefix, tokenizer_hash=tokenizer_hash(str(folder / "tokenizer")))
    return train(*overrides(prefix), f"data.tokenizer={folder}/tokenizer", f"run.dir={folder}/run", hooked=True)


def overrides(prefix: str) -> tuple[str, ...]:
    return (
        *SHAPES,
        *EVALUATION,
        "model.num_hidden_layers=2",
        "batch.micro_size=2",
        "stages=sft",
        f"stages.sft.tokens={STEPS * 4 * 48}",
        "stages.sft.schedule.learning_rate=0.01",
        "evaluation.every=30",
        "evaluation.threshold=0.9",
        "evaluation.exact_match=true",
        "evaluation.max_new_tokens=20",
        f"data.train=[{{prefix: {prefix}, weight: 1}}]",
        f"data.validation=[{{prefix: {prefix}, weight: 1}}]",
        "data.tokenizer=null",
        "data.workers=0",
        "validation.every=30",
        "checkpoint.every=30",
        "checkpoint.keep_last=null",
        "validation.samples=2",
        "validation.levels=[0.5,1]",
        "logging.wandb.mode=disabled",
        "execution.device=cpu",
        "execution.timeout_minutes=5",
    )


def test_a_model_that_has_memorised_its_conversations_answers_all_exactly(memorised: Path) -> None:
    found = decodings(memorised)
    assert list(found) == [30, STEPS]
    first, last = found[30]["modes"], found[STEPS]["modes"]
    assert list(last) == list(MODES)
    assert min(figures["exact"] for figures in first.values()) < 1
    for mode, figures in last.items():
        assert figures["exact"] == 1, mode
        # The two answers with the tokens that end them.
        assert figures["new_tokens"] == len("forty-two") + len("fifty-six") + 2
        assert figures["agreement"] == 1
    first_sample, second = found[STEPS]["samples"]
    assert first_sample == {"prompt": "seven times?</s><s>", **dict.fromkeys(("answer", *MODES), "forty-two</s>")}
    assert second["prompt"] == "so</s><s>is</s>eight?</s><s>"
    assert last["linear"]["tokens_per_forward"] > last["ar"]["tokens_per_forward"]


def test_exact_answers_are_in_every_log(memorised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record for record in records_of(memorised) if "decoding" in record]
    first, last = (record["decoding"]["modes"]["diffusion"]["exact"] for record in (records[0], records[-1]))
    metric = MetricTable()["decoding"]
    assert "ar         exact 100%" in metric.lines(records[-1]["decoding"])[0]
    assert metric.wandb_values(records[-1]["decoding"] | {"samples": []})["decoding/modes/ar/exact"] == 1
    (panel,) = (panel for panel in metric.panels(records) if panel.title == "Decoding: exact answers")
    assert [curve.label for curve in panel.curves] == list(MODES)
    assert [value for _, value in panel.curves[1].points][:: len(records) - 1] == [first, last]
    summary = json.loads((memorised / "summary.json").read_text())
    assert summary["stages"]["sft"]["decoding"]["diffusion"]["last"]["exact"] == 1
    assert f"sft, diffusion: exact {first:.1%} -> 100.0%, " in "\n".join(progress_lines(summary))
    capsys.readouterr()
    assert status.main([str(memorised), "--json"]) == 0
    assert '"exact": 1.0' in capsys.readouterr().out
    assert metric.status_text(metric.status(records[-1]))[0] == "tokens per forward (exact)"


def test_held_out_losses_are_means_over_answers(memorised: Path) -> None:
    """AR, by one forward over each answer; the decoder's probabilities are those without the mask token."""
    source = find_source(memorised / "checkpoints" / "step_00000030")
    scorings = [
        Scoring(tuple(context), tuple(answer)) for conversation in TWO for context, answer in each_answer(conversation)
    ]
    assert len(scorings) == 3
    with source.open() as engine:
        total = sum(score.loglikelihood for score in score_exactly(engine, scorings, 3, lambda _: None))
    expected = -total / sum(len(scoring.continuation) for scoring in scorings)
    validation = next(record["validation"] for record in records_of(memorised) if record["step"] == 30)
    assert validation["ar_loss"] == pytest.approx(expected, rel=1e-3)
    assert list(validation["diffusion_loss"]) == ["0.5", "1"]


def each_answer(conversation: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Context and answer of each answer of a conversation."""
    before: list[int] = []
    for turn in conversation:
        size = len(turn.tokens) - turn.answer
        if turn.answer:
            yield before + turn.tokens[:size], turn.tokens[size:]
        before = before + turn.tokens


def test_texts_have_no_answers_to_compare_with(trained: Path) -> None:
    assert all("exact" not in figures for record in decodings(trained).values() for figures in record["modes"].values())


def test_questions_are_the_last_answers_of_conversations_all_over_a_set(tmp_path: Path) -> None:
    conversations = [
        *random_conversations(seed=1, count=30),
        [Turn("user", [7, 8])],
        [Turn("assistant", [9, END], 2)],
        exchange("long" * 9, "no"),
        exchange("", ""),
    ]
    prefix = chat_set(tmp_path, conversations)
    expected = [list(each_answer(each))[-1] for each in conversations if list(each_answer(each))]
    suitable = [(prompt, answer) for prompt, answer in expected if 0 < len(prompt) <= 30]
    assert len(suitable) < len(expected)
    found = [(each.prompt, each.answer) for each in questions(prefix, len(conversations), 30)]
    assert found == suitable
    # Parts without one are made up for by others.
    assert len(questions(prefix, len(suitable), 30)) == len(suitable)
    some = [(each.prompt, each.answer) for each in questions(prefix, 5, 30)]
    assert [suitable.index(each) for each in some] == sorted(suitable.index(each) for each in some)
    assert len(some) == 5
    assert suitable.index(some[-1]) > len(suitable) // 2


def test_a_set_whose_conversations_overlap_is_refused(tmp_path: Path) -> None:
    prefix = chat_set(tmp_path, [exchange("a", "b"), exchange("c", "d"), exchange("e", "f")])
    raw = bytearray(Path(f"{prefix}.idx").read_bytes())
    pointer = check_token_files(prefix).pointer_at(1)
    raw[pointer : pointer + 8] = (1 << 20).to_bytes(8, "little")
    Path(f"{prefix}.idx").write_bytes(raw)
    with pytest.raises(UserError, match=r"chat\.idx is damaged: its documents are not in order"):
        questions(prefix, 3, 30)


def test_several_sets_share_the_questions_by_weight(tmp_path: Path) -> None:
    sources = []
    for name, token, weight in (("a", 70, 1.0), ("b", 80, 2.0), ("c", 90, 0.01)):
        prefix = chat_set(tmp_path, [exchange(chr(token - 4) * 3, "x") for _ in range(20)], name)
        sources.append(SourceConfig(prefix, weight))
    found = [each.prompt[0] for each in questions_of(sources, 9, 30)]
    assert found == [70] * 3 + [80] * 6


def test_what_is_an_exact_answer() -> None:
    held_out = HeldOut([[5]] * 6, [[7, 8, END, 9]] * 6, (END, 3))
    found = [[7, 8, END], [7, 8, 3], [7, 8], [7, END], [7, 8, 8, END], [7, 9, END]]
    assert held_out.exact(found) == pytest.approx(2 / 6)
    # Without an end there is nothing to stop at.
    assert HeldOut([[5]] * 2, [[7, 8]] * 2, (END,)).exact([[7, 8, 8], [7, 7, 8]]) == 0.5


def test_with_a_tokenizer_texts_are_compared(tmp_path: Path) -> None:
    """However they are tokenized; ids on disk and texts of a file of questions alike."""
    save_tokenizer(bytes_tokenizer(), str(tmp_path / "tokenizer"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    match = ExactMatch((END,), tokenizer)
    found = [[*letters("42"), END], [*letters(" 42 "), END], [*letters("4 2"), END], letters("42")]
    for answer in ("42 ", [*letters("42"), END, *letters("x")]):
        assert match.right(found, [answer] * 4) == [True, True, False, False]
    # A right answer without an end.
    assert match.right([letters("42x"), letters("4")], [letters("42")] * 2) == [True, False]
    # Other ids of the same text.
    tokenizer.add_tokens(["42"])
    joined = tokenizer.convert_tokens_to_ids("42")
    assert match.right([[joined, END]], [[*letters("42"), END]]) == [True]
    assert ExactMatch((END,)).right([[joined, END]], [[*letters("42"), END]]) == [False]


def test_answers_end_with_the_token_that_ends_a_turn(tmp_path: Path) -> None:
    prefix = chat_set(tmp_path, [[Turn("user", [9, 9]), Turn("assistant", [7, 6], 2)]])
    config = config_of(*overrides(prefix))
    assert held_out_of(config, "sft") == HeldOut([[9, 9]], [[7, 6]], (END,))
    chat = manifest_of(prefix).chat
    assert chat is not None
    changed(prefix, chat=replace(chat, end_of_turn=6))
    assert held_out_of(config, "sft").stop_tokens == (END, 6)


def test_a_set_without_a_question_that_fits_is_refused(tmp_path: Path) -> None:
    prefix = chat_set(tmp_path, [exchange("x" * 80, "y")])
    config = config_of(*overrides(prefix), f"run.dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match=r"no conversation of .* has an answer after a prompt that leaves room"):
        check_files(replace(config, validation=replace(config.validation, every=0)))
    assert not (tmp_path / "run").exists()
