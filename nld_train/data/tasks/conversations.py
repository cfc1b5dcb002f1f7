"""Held-out conversations as tasks of lm_eval. `nld-data tasks` copies this file beside the tasks.

lm_eval puts one user message into the chat template; a conversation of several turns needs all of its messages there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask


class Conversations(ConfigurableTask):
    """The last answer of each conversation, after the messages before it."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(
        self,
        doc: dict[str, Any],
        num_fewshot: int,
        *arguments: Any,
        apply_chat_template: bool = False,
        chat_template: Callable[..., str] | None = None,
        **settings: Any,
    ) -> str | list[str]:
        """The prompt of a conversation; without a chat template, lm_eval's own, which has the last question only."""
        if not (apply_chat_template and chat_template) or num_fewshot:
            return super().fewshot_context(
                doc,
                num_fewshot,
                *arguments,
                apply_chat_template=apply_chat_template,
                chat_template=chat_template,
                **settings,
            )
        return chat_template(doc["messages"][:-1], add_generation_prompt=True)


def load(kind: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The held-out conversations of a kind, from the folder above this one."""
    lines = (Path(__file__).parents[1] / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
    return {"test": datasets.Dataset.from_list(rows)}
