"""Imported once by the fork server of the data workers, so that none of them waits for Megatron-Core's import."""

import atexit
import multiprocessing.forkserver
import shutil
import signal
from pathlib import Path
from typing import Any

from nld_train.data.packed import indexed_dataset_module

indexed_dataset_module()

# Signals that stop a job often reach all its processes. The training process exits when its step is finished and saved,
# and needs data until then; the server and its workers exit when that process is gone.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)


def _remove_socket() -> None:
    """Removes the folder of the server's and the workers' sockets: a training process that was killed has not."""
    server: Any = multiprocessing.forkserver._forkserver
    # A process that uses a server knows its process id as well.
    if server._forkserver_address and server._forkserver_pid is None:
        shutil.rmtree(Path(server._forkserver_address).parent, ignore_errors=True)


atexit.register(_remove_socket)
