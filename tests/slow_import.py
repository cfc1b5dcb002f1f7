"""A library whose import takes long, and signals to a command that imports it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tiny_runs import TESTS

# It makes an error of its own of an interrupt, as libraries in C++ do.
SLOW_LIBRARY = """
import pathlib, time
pathlib.Path("importing").touch()
try:
    time.sleep(60)
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error
"""


def interrupted_import(folder: Path, number: int, library: str, *words: str) -> tuple[int, str]:
    """Sends a signal to Python, started with some words, while it imports a library; returns status and output."""
    (folder / f"{library}.py").write_text(SLOW_LIBRARY)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{TESTS.parent}"}
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (folder / "importing").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    return process.returncode, printed
