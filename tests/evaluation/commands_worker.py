"""One process of a group that runs several commands in order (started by `run_ranks`).

    commands_worker.py COMMANDS.json

A command is `{"module", "words", "output"}`. The output gets what rank 0 prints; a command that fails ends the worker.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path


def main(commands_path: str) -> int:
    for command in json.loads(Path(commands_path).read_text()):
        with Path(command["output"]).open("a") as output:
            printed = redirect_stdout(output) if os.environ["RANK"] == "0" else nullcontext()
            with printed:
                status = int(import_module(command["module"]).main(command["words"]))
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
