"""Stand-ins for the installed commands in a shell: each is forked (`forked.py`), and starts in milliseconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from fork_server import console_scripts
from forked import TESTS, Forked, end_group, rank_environments, wait_for_group

OURS = ("nld_train", "checkpoint_convert", "benchmarks")
SCRIPT = """#!{python} -IS
import sys
sys.path.insert(0, {tests!r})
from forked_command import main
sys.exit(main({name!r}, sys.argv[1:]))
"""
TIMEOUT = 600.0


def make_commands(folder: Path) -> Path:
    """Writes a stand-in for each command of this project, for `python` and for `torchrun`; returns the folder."""
    folder.mkdir()
    for name in (*console_scripts(), "python", "torchrun"):
        path = folder / name
        path.write_text(SCRIPT.format(python=sys.executable, tests=str(TESTS), name=name))
        path.chmod(0o755)
    return folder


def main(name: str, words: list[str]) -> int:
    """Runs a command as it is called; what is none of ours is handed to the real one."""
    if name == "python" and (words[:1] != ["-m"] or not words[1].startswith(OURS)):
        _real(name, words)
    if name != "torchrun":
        return _run([words if name == "python" else [name, *words]], [os.environ])
    if words[:2] != ["--standalone", "--nproc-per-node"]:
        _real(name, words)
    return _run([words[3:]] * int(words[2]), rank_environments(int(words[2])))


def _run(processes: list[list[str]], environments: list[Mapping[str, str]]) -> int:
    group = [
        Forked(words, sys.stdout, environment=environment, errors=sys.stderr)
        for words, environment in zip(processes, environments, strict=True)
    ]
    try:
        status = wait_for_group(group, TIMEOUT)
    finally:
        end_group(group)
    return 124 if status is None else status if status >= 0 else 128 - status


def _real(name: str, words: list[str]) -> NoReturn:
    """Beside the interpreter."""
    real = Path(sys.executable).with_name(name)
    os.execv(real, [str(real), *words])
