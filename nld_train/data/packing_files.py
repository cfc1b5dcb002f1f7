"""The files of a packing (`packing`): a folder that is named by a hash of everything that determines it.

`conversations.bin` has first token and length of each conversation, sample after sample; `samples.bin` the number of
the first conversation of each sample, and of all; `packing.json`, which is written last, what became of the
conversations. The folder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from nld_train.data.conversation_lengths import ConversationPacking, PackingFacts
from nld_train.data.packed import quick_fingerprint
from nld_train.data.token_index import check_files
from nld_train.errors import UserError
from nld_train.outside_json import as_record, read_object

CONVERSATIONS, SAMPLES, FACTS = "conversations.bin", "samples.bin", "packing.json"
# A conversation of a sample.
CONVERSATION_DTYPE = np.dtype([("start", "<i8"), ("length", "<i4")])
_FORMAT_VERSION = 1


def packing_key(prefix: str, packing: ConversationPacking, seed: int) -> str:
    """Hash of everything that determines a packing; names its folder.

    Raises:
        UserError: the set's files are missing or truncated.
    """
    check_files(prefix)
    settings = asdict(packing)
    if not packing.noisy_length:  # without a noisy stream there are no blocks
        del settings["block_size"], settings["blocks"], settings["fill"]
    raw = json.dumps([_FORMAT_VERSION, quick_fingerprint(prefix), settings, seed])
    return hashlib.sha256(raw.encode()).hexdigest()


def packing_directory(prefix: str, folder: str | os.PathLike[str], key: str) -> Path:
    """Where the packing of a set with this key is found below `folder`."""
    return Path(folder) / f"{Path(prefix).name}-{key[:16]}"


def intact_facts(directory: Path) -> PackingFacts | None:
    """The facts of a packing, or None where its files are missing or damaged."""
    try:
        record = read_object(directory / FACTS)
        digest = record.pop("digest")
        facts = as_record(PackingFacts, record, FACTS)
        return facts if digest == digest_of(directory) else None
    except (OSError, UserError, KeyError):
        return None


def digest_of(directory: Path) -> str:
    """Hash of the two files of a packing."""
    digest = hashlib.sha256()
    for name in (CONVERSATIONS, SAMPLES):
        with open(directory / name, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
