"""Concatenates finished shards, in order, into one Megatron `.bin/.idx`, and counts every id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nld_train.data.packed import indexed_dataset_module
from nld_train.data.tokenizer import EncoderSpec
from nld_train.errors import UserError


@dataclass(frozen=True)
class SetContent:
    """Content of the written files: prefix, documents, tokens, the largest id and the tokens' numpy type."""

    prefix: str
    documents: int
    tokens: int
    largest_id: int
    dtype: str


def assemble(prefix: str, name: str, shards: Sequence[Path], spec: EncoderSpec) -> SetContent:
    """Writes `prefix.bin`, `prefix.idx` and `prefix.counts.npy` (int64, how often each id occurs) from shard files.

    Args:
        prefix: path of the result without suffix.
        name: which set of the shards: `train` or `validation`.
        shards: shard files in order.
        spec: the tokenizer.

    Raises:
        UserError: no shard contains a document.
    """
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=spec.dtype)
    counts = np.zeros(spec.vocabulary_size, dtype=np.int64)
    documents = 0
    for shard in shards:
        with np.load(shard, allow_pickle=False) as arrays:
            tokens, lengths = arrays[f"{name}_tokens"], arrays[f"{name}_lengths"]
        counts += np.bincount(tokens, minlength=spec.vocabulary_size)
        for document in np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else ():
            builder.add_document(document, [len(document)])
        documents += len(lengths)
    builder.finalize(f"{prefix}.idx")
    if not documents:
        raise UserError(
            "no document is left for validation: give a larger --validation, or more text"
            if name == "validation"
            else "the sources hold no text"
        )
    np.save(f"{prefix}.counts.npy", counts)
    largest = int(np.flatnonzero(counts)[-1])
    return SetContent(prefix, documents, int(counts.sum()), largest, np.dtype(spec.dtype).name)
