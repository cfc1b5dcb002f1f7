"""The files of a tokenizer, without those of a model in the same directory."""

from __future__ import annotations

from pathlib import Path

# Folder of a checkpoint's tokenizer.
TOKENIZER = "tokenizer"
# The chat template of a tokenizer that has one, in a file of its own.
CHAT_TEMPLATE = "chat_template.jinja"
# Vocabulary files of a tokenizer without a `tokenizer.json`.
VOCABULARY_FILES = (
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# All files that a tokenizer may consist of, none of which is code.
TOKENIZER_FILES = (
    "tokenizer.json",
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "chat_template.json",
)


# Folder of the templates besides the default one, in files of their own.
MORE_TEMPLATES = "additional_chat_templates"


def read_tokenizer(source: Path) -> dict[str, bytes]:
    """Names and contents of a tokenizer's files; those of further chat templates are paths."""
    found = {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).is_file()}
    more = sorted((source / MORE_TEMPLATES).glob("*.jinja")) if found else []
    return found | {f"{MORE_TEMPLATES}/{path.name}": path.read_bytes() for path in more if path.is_file()}


def write_tokenizer(files: dict[str, bytes], destination: Path) -> None:
    """Writes the files that `read_tokenizer` has read; makes the directory if there are any."""
    for name, content in files.items():
        (destination / name).parent.mkdir(exist_ok=True, parents=True)
        (destination / name).write_bytes(content)


def copy_tokenizer(source: Path, destination: Path) -> list[str]:
    """Copies the files of a tokenizer; returns their names."""
    files = read_tokenizer(source)
    write_tokenizer(files, destination)
    return list(files)
