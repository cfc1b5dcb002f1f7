"""`nld-data prompts`: pieces of held-out documents, or conversations up to their last answer, as prompts.

Decoding is measured on them, on text that was not trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nld_train.data.manifest import is_chat_set, read_manifest, require_tokenizer
from nld_train.data.packed import indexed_dataset_module
from nld_train.data.questions import questions
from nld_train.data.token_index import check_files, document_spans
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.model.vision.picture_prompt import PicturePrompt
from nld_train.progress import Advance, progress_bar
from nld_train.results import check_output

# Of a piece of a document.
_TOKENS = 128


@dataclass(frozen=True)
class PromptRequest:
    """The prompts to take from a set.

    Attributes:
        prefix: path of the set without suffix.
        out: JSONL file to write, one object with a "prompt" per line.
        count: number of prompts, each from another document.
        tokens: length of each; of conversations, which stay whole, the most. None for 128, or for any.
        tokenizer: directory, or None for the one that the manifest names.
    """

    prefix: str
    out: str
    count: int
    tokens: int | None
    tokenizer: str | None


def write_prompts(request: PromptRequest) -> int:
    """Writes the prompts of a request; returns their number.

    Documents are taken evenly over the set, in file order, so the same request gives the same prompts. A line has the
    text under `prompt`, and under `continuation_token_ids` the ids that follow it in the set: as many as the prompt
    has, or the answer of a conversation. Of a conversation there are also the ids under `prompt_token_ids`, which its
    text need not give again, and the text of the answer under `answer`.

    Raises:
        UserError: a number below 1, no tokenizer, conversations with pictures, or fewer documents of twice this
            length, or conversations with an answer, than prompts.
    """
    if request.count < 1 or (request.tokens is not None and request.tokens < 1):
        raise UserError("--count and --tokens must be at least 1")
    check_output(f"--output {request.out}", Path(request.out))
    documents = check_files(request.prefix).documents
    tokenizer = load_tokenizer(_tokenizer_directory(request))
    if is_chat_set(request.prefix):
        rows = _questions(request, tokenizer)
    else:
        with progress_bar("documents", 2 * documents) as advance:  # they are counted, then chosen
            rows = [
                {"prompt": tokenizer.decode(piece, skip_special_tokens=True), "continuation_token_ids": following}
                for piece, following in _pieces(request, advance)
            ]
    write_atomically(Path(request.out), "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _questions(request: PromptRequest, tokenizer: Any) -> list[dict[str, Any]]:
    """Conversations up to their last answer, with the special tokens of the chat template in their texts."""
    longest = sys.maxsize if request.tokens is None else request.tokens
    asked = questions(request.prefix, request.count, longest)
    if any(isinstance(question.prompt, PicturePrompt) for question in asked):
        raise UserError(
            f"{request.prefix} has pictures, which prompts of ids do not hold: give nld-decode --chat the "
            "conversations that it was prepared from"
        )
    found = [
        {
            "prompt": tokenizer.decode(question.prompt, skip_special_tokens=False),
            "prompt_token_ids": question.prompt,
            "answer": tokenizer.decode(question.answer, skip_special_tokens=True),
            "continuation_token_ids": question.answer,
        }
        for question in asked
    ]
    if len(found) < request.count:
        short = "" if request.tokens is None else f" of at most {request.tokens} tokens"
        raise UserError(
            f"{request.prefix} has {len(found)} conversations with an answer after a prompt{short}, fewer than --count "
            f"{request.count}: take fewer or longer prompts"
        )
    return found


def _size(request: PromptRequest) -> int:
    """Tokens of a piece of a document."""
    return _TOKENS if request.tokens is None else request.tokens


def _tokenizer_directory(request: PromptRequest) -> str:
    manifest = read_manifest(request.prefix)
    if manifest is None:
        if request.tokenizer is None:
            raise UserError(f"{request.prefix} has no manifest that names its tokenizer: give --tokenizer DIR")
        return request.tokenizer
    directory = request.tokenizer or manifest.tokenizer_directory(request.prefix)
    require_tokenizer(request.prefix, manifest, directory, "--tokenizer")
    return directory


def _pieces(request: PromptRequest, advance: Advance) -> Iterator[tuple[list[int], list[int]]]:
    """As many tokens before and after the middle of each chosen document: the head is often a licence, and a prompt
    that ends with its document cannot be continued."""
    size = _size(request)
    indexed: Any = indexed_dataset_module().IndexedDataset(request.prefix, mmap=True)
    for start, length in _chosen(request, advance):
        middle = start + length // 2
        both = indexed.get(0, offset=middle - size, length=2 * size).tolist()
        yield both[:size], both[size:]


def _chosen(request: PromptRequest, advance: Advance) -> Iterator[tuple[int, int]]:
    """First token and length of documents that are long enough, taken evenly over the set."""
    found = sum(len(lengths) for _, lengths in _long(request, advance))
    if found < request.count:
        raise UserError(
            f"{request.prefix} has {found} documents of {2 * _size(request)} tokens or more, fewer than --count "
            f"{request.count}: take fewer or shorter prompts"
        )
    wanted = np.arange(request.count) * found // request.count
    passed = 0
    for starts, lengths in _long(request, advance):
        here = wanted[(wanted >= passed) & (wanted < passed + len(lengths))] - passed
        yield from zip(starts[here].tolist(), lengths[here].tolist(), strict=True)
        passed += len(lengths)


def _long(request: PromptRequest, advance: Advance) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """`document_spans` of the documents of at least twice the length of a prompt."""
    for starts, lengths in document_spans(request.prefix, advance):
        long = lengths >= 2 * _size(request)
        yield starts[long], lengths[long]
