"""The tasks that `nld-data tasks` writes for lm-evaluation-harness: their prompts, and what counts as right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nld_train.commands.data import main
from nld_train.data.chat.default import default_template
from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    assert main(["tasks", str(folder), "--conversations", "5", "--held-out", "4"]) == 0
    return folder


@pytest.fixture(scope="module")
def tasks(folder: Path) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    from nld_train.evaluation.harness.tasks import load_tasks

    manager = TaskManager(include_path=str(folder / "harness"), include_defaults=False)
    (group,) = load_tasks(["nld_tasks"], manager)
    return {task.task_name: task for task in group.get_all_tasks()}


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "held-out.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_there_is_one_for_each_kind(folder: Path, tasks: dict[str, Any]) -> None:
    kinds = {json.loads(line)["kind"] for line in (folder / "held-out.jsonl").read_text().splitlines()}
    assert set(tasks) == {f"nld_tasks_{kind}" for kind in kinds}


@pytest.mark.parametrize("kind", ["add", "follow_up"])
def test_prompts_are_those_of_the_chat_template(folder: Path, tasks: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """All messages before the last answer, each in a turn of its own, as plain transformers renders them."""
    save_tokenizer(bytes_tokenizer(), str(tmp_path / "tokenizer"), chat_template=default_template())
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    task = tasks[f"nld_tasks_{kind}"]
    documents = list(task.test_docs())
    assert len(documents) == 4
    for document, row in zip(documents, rows(folder, kind), strict=True):
        prompt = task.fewshot_context(document, 0, apply_chat_template=True, chat_template=render)
        assert prompt == render(row["messages"][:-1], True)
        assert prompt.count("U<s>") == len(row["messages"]) // 2


def test_only_the_whole_answer_is_right(folder: Path, tasks: dict[str, Any]) -> None:
    task = tasks["nld_tasks_add"]
    (document, *_), (row, *_) = list(task.test_docs()), rows(folder, "add")
    right = row["messages"][-1]["content"]
    assert task.process_results(document, [right])["exact_match"] == 1
    assert task.process_results(document, [right + "0"])["exact_match"] == 0
