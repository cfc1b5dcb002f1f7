"""One process of a group that runs several commands, one after another (started by `run_ranks`).

    commands_worker.py COMMANDS.json

A command is `{"module", "words", "output"}`. What rank 0 prints goes to the output; a command that fails ends all.
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
            spoken = redirect_stdout(output) if os.environ["RANK"] == "0" else nullcontext()
            with spoken:
                status = int(import_module(command["module"]).main(command["words"]))
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
