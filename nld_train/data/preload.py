"""Imported once by the fork server of the data workers, so that none of them waits for Megatron-Core's import."""

import signal

from nld_train.data.packed import indexed_dataset_module

indexed_dataset_module()

# What asks a job to stop often reaches all its processes. The training process leaves when its step is done and saved,
# and needs its data until then; the server and its workers leave when that process has closed its pipes.
for request in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(request, signal.SIG_IGN)
