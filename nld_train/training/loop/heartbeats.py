"""Heartbeats to NVIDIA's resiliency extension, for the key `execution.fault_tolerance`.

Its launcher `ft_launcher` starts a monitor beside each process, which kills a process whose heartbeats stop, and starts
all of them again. What it needs from a run is here: one message after each part of a step. Which parts those are
decides the run; how long one may take is a setting of the launcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.output import write_error
from nld_train.printable import one_line

PACKAGE = "nvidia_resiliency_ext"
# Where the launcher tells a process the socket of its monitor.
MONITOR = "FT_RANK_MONITOR_IPC_SOCKET"

Beat = Callable[[], None]


def require_monitor(config: Config) -> None:
    """Raises `UserError` where `execution.fault_tolerance` needs what is not there; imports nothing."""
    if not config.execution.fault_tolerance:
        return
    key = "execution.fault_tolerance=true"
    if find_spec(PACKAGE) is None:
        raise UserError(f"{key}: needs the package nvidia-resiliency-ext; install nld-train[resiliency], or set false")
    if MONITOR not in os.environ:
        raise UserError(f"{key}: ft_launcher has not started this process (docs/monitoring.md); use it, or set false")


@contextmanager
def heartbeats(config: Config) -> Iterator[Beat]:
    """Connects this process with its monitor, and yields what sends a heartbeat; without the key that does nothing.

    Raises:
        UserError: the package or the monitor is missing, or does not answer.
    """
    require_monitor(config)
    if not config.execution.fault_tolerance:
        yield _no_beat
        return
    client = _connect()
    try:
        yield _Heart(client)
    finally:
        with suppress(Exception):  # a monitor that has gone
            client.shutdown_workload_monitoring()


def _no_beat() -> None: ...


def _connect() -> Any:
    from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient

    client = RankMonitorClient()
    try:
        client.init_workload_monitoring()
    except Exception as error:  # of the client, or of the socket
        raise UserError(f"execution.fault_tolerance=true: no monitor answers ({one_line(str(error))})") from error
    return client


class _Heart:
    """Sends heartbeats until the first that fails, which is a warning: a monitor that lives then ends this process."""

    def __init__(self, client: Any) -> None:
        self._client: Any = client

    def __call__(self) -> None:
        if self._client is None:
            return
        try:
            self._client.send_heartbeat()
        except Exception as error:  # of the client, or of the socket
            self._client = None
            write_error(f"warning: the monitor of this process does not answer ({one_line(str(error))})")
