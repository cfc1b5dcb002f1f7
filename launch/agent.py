"""torchrun's agent for a node: `python launch/agent.py TORCHRUN-ARGUMENTS`; see `node_agent`.

Only the standard library is imported here: before torch is imported, which takes seconds, signals must not kill this
process without a word.
"""

from __future__ import annotations

import os
import signal
import sys

SAVED_STATUS = 75
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


def leave_before_start(number: int, _frame: object) -> None:
    """The handler before there are training processes: ends this one, which has nothing to save."""
    status = 130 if number == signal.SIGINT else SAVED_STATUS
    name = signal.Signals(number).name
    message = f"stopped by {name}: nothing to save yet (exit code {status}); the same command starts it again\n"
    os.write(2, message.encode())
    os._exit(status)


if __name__ == "__main__":
    for signal_number in SIGNALS:
        signal.signal(signal_number, leave_before_start)
    from node_agent import main

    sys.exit(main(sys.argv[1:]))
