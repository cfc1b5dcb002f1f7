"""From text to a token set: implements `nld-data prepare`.

The result depends on the request alone, not on the number of workers or on interruptions. Files get their final names
only when everything is written.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from nld_train.data.assemble import AnswerCounts, SetContent, assemble, plan_assembly
from nld_train.data.chat.chosen_template import chosen_template
from nld_train.data.chat.encoder import ChatSpec
from nld_train.data.chat.template import ChatTemplate
from nld_train.data.manifest import FORMAT_VERSION, ChatManifest, Manifest, PictureManifest, full_fingerprint
from nld_train.data.packed import quick_fingerprint, set_files
from nld_train.data.pictures.expand import IMAGE_TOKENS, image_tokens_of
from nld_train.data.readers import Document, documents
from nld_train.data.request import (
    SUFFIXES,
    PrepareRequest,
    finished_before,
    request_hash,
    settings_record,
    work_folder,
)
from nld_train.data.shards import ShardJob, encode_shards
from nld_train.data.sources import Piece, SourceSettings, plan_shards
from nld_train.data.split import check_split, is_held_out
from nld_train.data.tokenizer import (
    EncoderSpec,
    add_special_tokens,
    bytes_tokenizer,
    directory_spec,
    is_saved,
    own_spec,
    save_tokenizer,
    tokenizer_hash,
    train_bpe,
)
from nld_train.data.tokenizer_files import CHAT_TEMPLATE
from nld_train.errors import UserError
from nld_train.progress import progress_bar

_BPE_CHARACTERS = 256 << 20


def prepare(request: PrepareRequest, console: Console) -> dict[str, Manifest]:
    """Prepares the sets of a request, or finds them prepared already.

    Returns:
        Manifest of each set, by `train` and `validation`.

    Raises:
        UserError: a source, the tokenizer or the destination cannot be used; no file has its final name.
    """
    if not request.name or os.path.basename(request.name) != request.name:
        raise UserError(f"--name {request.name!r} must be a plain file name")
    if not 0 <= request.validation < 1:
        raise UserError(f"--validation {request.validation} must be a fraction in [0, 1)")
    shards = plan_shards(request.sources, request.settings, console.print)
    given, template = _given_encoder(request), _template(request)
    identity = request_hash(request, shards, given.beginning_of_document if given else (), template)
    if (finished := finished_before(request, identity)) is not None:
        console.print("already prepared: nothing to do")
        return finished
    check_split(_all_documents(shards, request.settings), request.validation)
    os.makedirs(request.out, exist_ok=True)
    work = work_folder(request, identity)
    work.mkdir(exist_ok=True)
    tokenizer, spec = (None, given) if given else _own_tokenizer(request, shards, work, console)
    chat = None
    if template is not None and request.chat is not None:
        images = image_tokens_of(spec, request.settings.pictures, request.tokenizer)
        chat = ChatSpec(spec, template, request.chat.answers, request.settings.leave_out_bad_rows, images)
    job = ShardJob(request.settings, spec, request.validation, work, chat)
    _encode(job, shards, request.workers, console)
    contents = _assemble(request, job, len(shards))
    # Last, so that a failed request leaves no tokenizer that a corrected request would be refused for.
    if tokenizer is not None:
        source = None if template is None else template.source
        save_tokenizer(tokenizer, request.tokenizer_directory, request.overwrite, source)
        if request.settings.pictures is not None:
            request.settings.pictures.processor.save(request.tokenizer_directory)
    manifests = _manifests(request, identity, job, contents)
    for name, prefix in request.prefixes.items():
        if template is not None:
            (work / f"{name}.{CHAT_TEMPLATE}").write_bytes(template.source.encode())
        manifests[name].write(work / f"{name}.manifest.json")
        _publish(str(work / name), prefix)
    shutil.rmtree(work)
    return manifests


def _given_encoder(request: PrepareRequest) -> EncoderSpec | None:
    """The encoder of the Hugging Face directory of a request; None where the tokenizer is made here."""
    if request.makes_tokenizer:
        return None
    return directory_spec(request.tokenizer, request.append_end, request.prepend_beginning)


def _template(request: PrepareRequest) -> ChatTemplate | None:
    """The chat template of a request for conversations."""
    if request.chat is None:
        return None
    tokenizer, pictures = None if request.makes_tokenizer else request.tokenizer, request.settings.pictures is not None
    return chosen_template(request.chat.template, request.chat.arguments, tokenizer, pictures)


def _own_tokenizer(
    request: PrepareRequest, shards: Sequence[Sequence[Piece]], work: Path, console: Console
) -> tuple[Tokenizer, EncoderSpec]:
    """The tokenizer that is made here and has to be saved beside the sets, and its encoder.

    Raises:
        UserError: the tokenizer cannot be trained, or another one exists where it would be saved.
    """
    tokenizer = bytes_tokenizer() if request.tokenizer == "bytes" else _trained(request, shards, work, console)
    if request.settings.pictures is not None:
        add_special_tokens(tokenizer, IMAGE_TOKENS)
    is_saved(tokenizer, request.tokenizer_directory, request.overwrite)  # refused now, not after all the encoding
    return tokenizer, own_spec(tokenizer, request.append_end)


def _trained(request: PrepareRequest, shards: Sequence[Sequence[Piece]], work: Path, console: Console) -> Tokenizer:
    """The BPE of a request, trained once: an interrupted run finds it in the work folder."""
    saved = work / "tokenizer.json"
    if not saved.exists():
        try:
            size = int(request.tokenizer.removeprefix("train-bpe:"))
        except ValueError:
            raise UserError(f"--tokenizer {request.tokenizer}: VOCAB must be a whole number (train-bpe:4096)") from None
        console.print(f"training a BPE of {size:,} ids")
        temporary = saved.with_suffix(f".{os.getpid()}.tmp")
        train_bpe(_training_texts(request, shards), size).save(str(temporary))
        os.replace(temporary, saved)
    return Tokenizer.from_file(str(saved))


def _training_texts(request: PrepareRequest, shards: Sequence[Sequence[Piece]]) -> Iterator[str]:
    """The first 256 Mi characters of the documents that are not held out."""
    characters = 0
    for document in _all_documents(shards, request.settings):
        if not is_held_out(document, request.validation):
            yield document.text
            characters += len(document.text)
        if characters >= _BPE_CHARACTERS:
            return


def _all_documents(shards: Sequence[Sequence[Piece]], settings: SourceSettings) -> Iterator[Document]:
    return (document for pieces in shards for piece in pieces for document in documents(piece, settings))


def _encode(job: ShardJob, shards: Sequence[list[Piece]], workers: int, console: Console) -> None:
    kept = sum(job.path(number).exists() for number in range(len(shards)))
    if kept:
        console.print(f"continuing: {kept} of {len(shards)} shards were finished before")
    pieces = [piece for pieces in shards for piece in pieces]
    in_bytes = all(piece.kind != "dataset" for piece in pieces)
    with progress_bar("encoding", sum(piece.size for piece in pieces), in_bytes) as advance:
        encode_shards(job, shards, workers, advance)


def _assemble(request: PrepareRequest, job: ShardJob, shards: int) -> dict[str, SetContent]:
    """Writes the sets into the work folder, which goes where that cannot succeed."""
    finished = [job.path(number) for number in range(shards)]
    try:
        plans = {
            name: plan_assembly(
                str(job.folder / name), name, finished, job.spec, job.chat is not None, job.has_pictures
            )
            for name in request.prefixes
        }
    except UserError:  # a set without tokens: continuing from these shards would fail again
        shutil.rmtree(job.folder)
        raise
    with progress_bar("writing tokens", sum(plan.tokens for plan in plans.values())) as advance:
        return {name: assemble(plan, request.workers, advance) for name, plan in plans.items()}


def _manifests(
    request: PrepareRequest, identity: str, job: ShardJob, contents: Mapping[str, SetContent]
) -> dict[str, Manifest]:
    prefixes = [content.prefix for content in contents.values()]
    size = sum(os.path.getsize(prefix + suffix) for prefix in prefixes for suffix in set_files(prefix))
    with progress_bar("checksums", size, in_bytes=True) as advance:
        fingerprints = {name: full_fingerprint(content.prefix, advance) for name, content in contents.items()}
    return {name: _manifest(request, identity, job, content, fingerprints[name]) for name, content in contents.items()}


def _manifest(request: PrepareRequest, identity: str, job: ShardJob, content: SetContent, fingerprint: str) -> Manifest:
    directory, spec = request.tokenizer_directory, job.spec
    packages = ("nld-train", "megatron-core", "tokenizers", "transformers", "datasets", "numpy")
    return Manifest(
        format_version=FORMAT_VERSION,
        sources=list(request.sources),
        arguments={
            "tokenizer": request.tokenizer,
            "validation": request.validation,
            "append_end": request.append_end,
            **settings_record(request.settings),
            **({} if request.chat is None else {"chat_request": asdict(request.chat)}),
        },
        request=identity,
        tokenizer=os.path.basename(directory) if request.makes_tokenizer else directory,
        tokenizer_hash=tokenizer_hash(directory),
        vocabulary_size=spec.vocabulary_size,
        beginning_of_document=list(spec.beginning_of_document),
        end_of_document=spec.end_of_document,
        documents=content.documents,
        tokens=content.tokens,
        largest_id=content.largest_id,
        dtype=content.dtype,
        fingerprint=fingerprint,
        quick_fingerprint=quick_fingerprint(content.prefix),
        versions={"python": platform.python_version()} | {package: _version(package) for package in packages},
        chat=None if job.chat is None or content.chat is None else _chat_manifest(job.chat, content, content.chat),
        pictures=_picture_manifest(job, content),
    )


def _picture_manifest(job: ShardJob, content: SetContent) -> PictureManifest | None:
    settings, chat, counts = job.settings.pictures, job.chat, content.pictures
    if settings is None or chat is None or chat.images is None or counts is None:
        return None
    return PictureManifest(
        **asdict(counts),
        processor=settings.processor.as_json(),
        image_token_id=chat.images.image_token_id,
        image_break_token_id=chat.images.image_break_token_id,
        image_end_token_id=chat.images.image_end_token_id,
    )


def _chat_manifest(spec: ChatSpec, content: SetContent, answers: AnswerCounts) -> ChatManifest:
    return ChatManifest(
        template_hash=hashlib.sha256(spec.template.source.encode()).hexdigest(),
        answers=spec.answers,
        conversations=content.documents,
        answer_tokens=answers.tokens,
        longest=answers.longest,
        answer_count=answers.answers,
        end_of_turn=next(iter(answers.ends)) if len(answers.ends) == 1 else None,
        left_out=answers.left_out,
        bad_rows=answers.bad,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"


def _publish(work_prefix: str, prefix: str) -> None:
    """Gives finished files their final names. The old `.idx` is removed first and the manifest is moved last, so that a
    crash in between never leaves a pair that looks complete and is not."""
    for suffix in reversed(SUFFIXES):
        Path(prefix + suffix).unlink(missing_ok=True)
    for suffix in SUFFIXES:
        if os.path.exists(work_prefix + suffix):  # a set of texts has no answers and no template
            os.replace(work_prefix + suffix, prefix + suffix)
