"""Runs command lines of this project in a process that cannot import torch, and prints what became of each as JSON."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any

SLOW = ("torch", "transformers", "megatron", "lm_eval")
COMMANDS = {
    "nld-acceptance": "nld_train.commands.acceptance",
    "nld-bound": "nld_train.commands.bound",
    "nld-convert": "checkpoint_convert.cli",
    "nld-curve": "nld_train.commands.curve",
    "nld-data": "nld_train.commands.data",
    "nld-decode": "nld_train.commands.decode",
    "nld-eval": "nld_train.commands.eval",
    "nld-exact": "nld_train.commands.exact",
    "nld-plan": "nld_train.commands.plan",
    "nld-sampler": "nld_train.commands.sampler",
    "nld-status": "nld_train.commands.status",
    "nld-train": "nld_train.commands.train",
}


class Blocked:
    """Finds no slow package, and says so."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in SLOW:
            raise AssertionError(f"{name} is imported")


def run(words: list[str]) -> tuple[Any, str]:
    """The status and the error stream of a command line."""
    errors = io.StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(io.StringIO()):
            status = import_module(COMMANDS[words[0]]).main(words[1:])
    except AssertionError as error:
        return str(error), errors.getvalue()
    return status, errors.getvalue()


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    print(json.dumps([run(words) for words in json.loads(sys.stdin.read())]))
