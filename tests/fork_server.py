"""The process that all child processes of a test run are forked from: it imports the heavy libraries once.

    fork_server.py SOCKET OWNER

A client (`forked.py`) sends one request per process, with its three standard streams; it gets the process id, and at
the end the exit code. A process whose client goes away is killed with its group, and so is everything when the process
OWNER, the test run, ends.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import struct
import sys
import threading
import tomllib
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGES = ("nld_train", "checkpoint_convert")
LIBRARIES = (
    "hydra",
    "datasets",
    "lm_eval",
    "lm_eval.evaluator",
    "matplotlib.pyplot",
    "megatron.core.dist_checkpointing.strategies.filesystem_async",
    "peft",
    "safetensors.torch",
    "torch.distributed.checkpoint",
    "transformers.models.ministral3.modeling_ministral3",
)
LENGTH = struct.Struct("!I")
STREAMS = 3


def preload() -> None:
    """Imports what the commands import sooner or later."""
    import torch

    torch.set_num_threads(1)
    names = list(LIBRARIES)
    for package in PACKAGES:
        found = importlib.import_module(package)
        names += [module.name for module in pkgutil.walk_packages(found.__path__, f"{package}.")]
    for name in names:
        with suppress(ImportError):  # of a library that this machine lacks
            importlib.import_module(name)
    _compose_once()
    assert threading.active_count() == 1, "threads do not survive a fork"
    # Collecting in a child would otherwise copy the pages of every object here.
    gc.collect()
    gc.freeze()


def _compose_once() -> None:
    """Hydra's parser builds tables at its first words, which takes longer than all else that a child composes."""
    from tiny_runs import TINY_MODEL, data_overrides, two_stages

    from nld_train.config.compose import compose_config

    compose_config([*TINY_MODEL, *data_overrides("/nothing"), *two_stages(1, 1), "run.dir=/nothing", "run.max_steps=1"])


class Server:
    """Forks processes, reports their ends."""

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self.listener, self.owner = listener, owner
        self.clients: dict[int, socket.socket] = {}  # by process
        self.selector = selectors.DefaultSelector()
        self.ended, wake = os.pipe()
        os.set_blocking(self.ended, False)
        os.set_blocking(wake, False)
        self.selector.register(listener, selectors.EVENT_READ)
        self.selector.register(self.ended, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> dict[str, Any] | None:
        """Works until the owner has ended; in a forked process, returns what is to run there."""
        try:
            while _alive(self.owner):
                for key, _ in self.selector.select(timeout=1):
                    if key.fileobj is self.listener:
                        request = self._accept()
                        if request is not None:
                            return request
                    elif key.data is not None:
                        self._client_has_gone(key.data)
                self._reap()
        except BaseException:
            self._kill_all()
            raise
        self._kill_all()
        return None

    def _accept(self) -> dict[str, Any] | None:
        client, _ = self.listener.accept()
        client.settimeout(20)
        try:
            head, streams, _, _ = socket.recv_fds(client, LENGTH.size, STREAMS)
            request = json.loads(_receive(client, LENGTH.unpack(head)[0]))
        except (OSError, ValueError, struct.error):
            client.close()
            return None
        process = os.fork()
        if process == 0:
            self._leave(client)
            _take_streams(streams)
            found: dict[str, Any] = request
            return found
        for stream in streams:
            os.close(stream)
        self.clients[process] = client
        self.selector.register(client, selectors.EVENT_READ, process)
        self._tell(client, process)
        return None

    def _leave(self, client: socket.socket) -> None:
        """In the forked process: closes what belongs to the server."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other in (client, self.listener, *self.clients.values()):
            other.close()
        self.selector.close()
        os.close(self.ended)

    def _tell(self, client: socket.socket, number: int) -> None:
        with suppress(OSError):  # a client that has gone is noticed by its closed connection
            client.sendall(struct.pack("!i", number))

    def _client_has_gone(self, process: int) -> None:
        _kill_group(process)
        client = self.clients.get(process)
        if client is not None:
            self.selector.unregister(client)
            client.close()
            del self.clients[process]

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.ended, 4096)
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            client = self.clients.pop(process, None)
            if client is not None:
                self.selector.unregister(client)
                self._tell(client, os.waitstatus_to_exitcode(status))
                client.close()

    def _kill_all(self) -> None:
        for process in self.clients:
            _kill_group(process)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_group(process: int) -> None:
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)


def _receive(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = client.recv(size - len(found))
        if not part:
            raise OSError("the client went away")
        found += part
    return found


def _take_streams(streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def _open_streams() -> None:
    """Python's objects for the standard streams, as a fresh interpreter makes them for pipes and files."""
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")[0] or "utf-8"
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115


def run(request: dict[str, Any]) -> int:
    """Does in this process what a fresh interpreter would with the same words; returns the exit code."""
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _open_streams()
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, paths), *sys.path]
    try:
        _run_words(request["words"])
        code = 0
    except SystemExit as end:
        code = _exit_code(end.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        _finish()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    _finish()
    return code


def _run_words(words: list[str]) -> None:
    """`-m MODULE ...`, `SCRIPT.py ...`, the name of an installed command, or `call MODULE FUNCTION JSON`."""
    first, *rest = words
    if first == "call":
        module, function, arguments = rest
        result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
        raise SystemExit(result)
    if first == "-m":
        module, *rest = rest
        sys.argv = ["-m", *rest]
        sys.path.insert(0, os.getcwd())
        sys.modules.pop(module, None)  # it was imported beforehand, and is now the program
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first.endswith(".py"):
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")
    else:
        module, _, function = console_scripts()[first].partition(":")
        sys.argv = [first, *rest]
        raise SystemExit(getattr(importlib.import_module(module), function)())


def console_scripts() -> dict[str, str]:
    """`MODULE:FUNCTION` of each command of this project."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    scripts: dict[str, str] = project["scripts"]
    return scripts


def _exit_code(code: Any) -> int:
    if code is None or isinstance(code, int):
        return int(code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _finish() -> None:
    """What an interpreter does at its end."""
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def main(path: str, owner: str) -> int:
    """Serves at a socket, which is there as soon as everything is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test run
    preload()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(128)
        os.rename(f"{path}.new", path)
        request = Server(listener, int(owner)).serve()
    if request is not None:
        return run(request)
    shutil.rmtree(Path(path).parent, ignore_errors=True)  # of a test run that was killed: it removes it else
    return 0


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
