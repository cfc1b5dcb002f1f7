"""The request of `nld-data prepare`, and whether an equal one was finished before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nld_train.data.answer_bits import ANSWERS, TURNS
from nld_train.data.chat.template import ChatTemplate
from nld_train.data.chat.turns import Answers
from nld_train.data.manifest import FORMAT_VERSION, Manifest, read_manifest
from nld_train.data.packed import quick_fingerprint
from nld_train.data.pictures.store import PICTURE_FILES
from nld_train.data.sources import Piece, SourceSettings
from nld_train.data.token_index import check_files
from nld_train.data.tokenizer import tokenizer_hash
from nld_train.data.tokenizer_files import CHAT_TEMPLATE
from nld_train.errors import UserError

# In the order in which files get their final names.
SUFFIXES = (".bin", ".idx", ANSWERS, TURNS, *PICTURE_FILES, ".counts.npy", f".{CHAT_TEMPLATE}", ".manifest.json")


@dataclass(frozen=True)
class ChatRequest:
    """How conversations are rendered.

    Attributes:
        template: file of the chat template, `default`, or None for the tokenizer's own.
        arguments: of the template, for every conversation.
        answers: which assistant turns are learned.
    """

    template: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    answers: Answers = "all"


@dataclass(frozen=True)
class PrepareRequest:
    """Sources, tokenizer and names of the sets that are prepared.

    Attributes:
        sources: files, folders, `datasets` names, or `stdlib`.
        out: folder of the result.
        name: name of the set; with validation there are two, `NAME-train` and `NAME-validation`.
        tokenizer: a Hugging Face directory, `bytes`, or `train-bpe:VOCAB`.
        settings: how sources are read.
        validation: fraction of documents that is held out, 0 for none.
        append_end: whether each document ends with the tokenizer's end-of-sequence token.
        prepend_beginning: whether each document begins with the tokens that the tokenizer puts before a text.
        workers: processes; they do not change the result.
        overwrite: replace a set of the same name, and the tokenizer beside it.
        chat: how conversations are rendered; None for texts. Nothing is put around a rendering.
    """

    sources: tuple[str, ...]
    out: str
    name: str
    tokenizer: str
    settings: SourceSettings
    validation: float = 0.0
    append_end: bool = True
    prepend_beginning: bool = True
    workers: int = 1
    overwrite: bool = False
    chat: ChatRequest | None = None

    @property
    def prefixes(self) -> dict[str, str]:
        """Prefix of each set, by `train` and `validation`."""
        base = os.path.join(self.out, self.name)
        if self.validation == 0:
            return {"train": base}
        return {"train": f"{base}-train", "validation": f"{base}-validation"}

    @property
    def makes_tokenizer(self) -> bool:
        """Whether the tokenizer is made here (and saved as `OUT/tokenizer`) rather than given."""
        return self.tokenizer == "bytes" or self.tokenizer.startswith("train-bpe:")

    @property
    def tokenizer_directory(self) -> str:
        """Directory of the tokenizer when the sets are finished."""
        return os.path.join(self.out, "tokenizer") if self.makes_tokenizer else os.path.abspath(self.tokenizer)


def request_hash(
    request: PrepareRequest,
    shards: Sequence[Sequence[Piece]],
    beginning: Sequence[int] = (),
    template: ChatTemplate | None = None,
) -> str:
    """Hash of everything that determines the sets; input files count by name, size and time of change.

    Args:
        request: sources, tokenizer and arguments.
        shards: pieces of the sources.
        beginning: ids before each document.
        template: that renders conversations.
    """
    settings = settings_record(request.settings)
    if request.settings.chat is None:  # a set of texts keeps its hash of earlier versions
        del settings["chat"], settings["leave_out_bad_rows"]
    parts = [
        FORMAT_VERSION,
        settings,
        request.validation,
        request.append_end,
        request.tokenizer if request.makes_tokenizer else tokenizer_hash(request.tokenizer),
        [[(p.kind, p.path, p.name, p.begin, p.end, p.size, p.stamp) for p in pieces] for pieces in shards],
        # Only where there are some, so that a set without them keeps its hash of earlier versions.
        *([list(beginning)] if beginning else []),
        *([template.source, template.variables, request.chat.answers] if template and request.chat else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def settings_record(settings: SourceSettings) -> dict[str, Any]:
    """Settings as JSON; without `pictures` where there are none, as earlier versions wrote them."""
    record = asdict(settings)
    if settings.pictures is None:
        del record["pictures"]
    return record


def work_folder(request: PrepareRequest, identity: str) -> Path:
    """Folder of a request's finished shards, until all are finished; a changed request has another folder."""
    return Path(request.out, f".{request.name}.work-{identity[:16]}")


def finished_before(request: PrepareRequest, identity: str) -> dict[str, Manifest] | None:
    """The manifests of the sets if the same request was finished before, else None.

    Raises:
        UserError: other files have the final names, and the request does not replace them.
    """
    intact = {name: manifest for name, prefix in request.prefixes.items() if (manifest := _intact(request, prefix))}
    if len(intact) == len(request.prefixes) and all(manifest.request == identity for manifest in intact.values()):
        return intact
    if request.overwrite or work_folder(request, identity).exists():  # the latter: interrupted while files were renamed
        return None
    for prefix in request.prefixes.values():
        _refuse_other_files(prefix, identity)
    return None


def _intact(request: PrepareRequest, prefix: str) -> Manifest | None:
    """The manifest of a complete set whose tokenizer is in its directory; else None."""
    try:
        check_files(prefix)
        manifest = read_manifest(prefix)
        if manifest is None or manifest.quick_fingerprint != quick_fingerprint(prefix):
            return None
        if manifest.chat is not None and template_hash(prefix) != manifest.chat.template_hash:
            return None
        return manifest if tokenizer_hash(request.tokenizer_directory) == manifest.tokenizer_hash else None
    except UserError:
        return None


def template_hash(prefix: str) -> str | None:
    """Hash of the template that is beside a set of conversations; None where there is none."""
    path = Path(f"{prefix}.{CHAT_TEMPLATE}")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _refuse_other_files(prefix: str, identity: str) -> None:
    existing = [prefix + suffix for suffix in SUFFIXES if os.path.exists(prefix + suffix)]
    if not existing:
        return
    try:
        manifest = read_manifest(prefix)
    except UserError:
        manifest = None
    if manifest is None or manifest.request != identity:
        raise UserError(
            f"{existing[0]} exists and was made by another command or from other files: give another --name or "
            "--out, or --overwrite"
        )
