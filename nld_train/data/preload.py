"""Imported once by the fork server of the data workers, so that none of them waits for Megatron-Core's import."""

import signal

from nld_train.data.packed import indexed_dataset_module

indexed_dataset_module()

# Signals that stop a job often reach all its processes. The training process exits when its step is finished and saved,
# and needs data until then; the server and its workers exit when that process has closed its pipes.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
