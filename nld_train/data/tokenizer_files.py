"""The files of a tokenizer, apart from the model that they may lie beside."""

from __future__ import annotations

import shutil
from pathlib import Path

# Of a checkpoint: where its tokenizer lies.
TOKENIZER = "tokenizer"
# Everything that a tokenizer may consist of; code is not among it.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_tokenizer(source: Path, destination: Path) -> list[str]:
    """Copies the files of a tokenizer, and nothing else; returns their names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if names:
        destination.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, destination / name)
    return names
