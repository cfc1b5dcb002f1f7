"""How much of the noisy stream is fill: end tokens after the ends of documents (docs/method.md, "Endings").

Read from the index of a set alone. A dry run imports no torch, and numpy only where there is a set to read.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nld_train.config.schema import Config, SourceConfig
from nld_train.config.stage_kinds import running_kinds
from nld_train.errors import UserError

if TYPE_CHECKING:
    from nld_train.data.document_index import DocumentIndex

# Samples, spread evenly over a set, from which its share is estimated: a standard error below 1 % of the noisy stream.
_SAMPLES = 256


def fill_share(prefix: str, sequence_length: int, block_size: int) -> float:
    """Fill as a fraction of the noisy stream, fill included, of packed samples with document borders.

    The noisy stream has as many tokens as the clean one, so this is the fraction of its blocks that are left out, too.

    Args:
        prefix: path of the set without suffix.
        sequence_length: L.
        block_size: B.

    Raises:
        UserError: the set cannot be read, or is shorter than a sample.
    """
    from nld_train.data.document_index import DocumentIndex

    index = DocumentIndex(prefix)
    samples = (index.tokens - 1) // sequence_length
    if samples < 1:
        raise UserError(f"{prefix}.bin has {index.tokens} tokens, fewer than one sample of {sequence_length} + 1")
    chosen = sorted({number * (samples - 1) // (_SAMPLES - 1) for number in range(_SAMPLES)})
    lengths = (
        length for sample in chosen for length in _ended_lengths(index, sample * sequence_length, sequence_length)
    )
    fill = sum(-length % block_size for length in lengths)
    return fill / (fill + len(chosen) * sequence_length)


def _ended_lengths(index: DocumentIndex, start: int, length: int) -> Iterator[int]:
    """Tokens in the sample at token `start` of each document that ends in it."""
    first = bisect_right(index, start)
    for document in range(first, bisect_left(index, start + length + 1, lo=first)):
        yield index[document] - start
        start = index[document]


def fill_facts(config: Config) -> Iterator[tuple[str, str]]:
    """Name and text of the fact that a plan states about fill; nothing for runs without fill after documents.

    Shares are means over the sets of a stage, by weight. A set that cannot be read has no share: a run can be planned
    where its data are not.
    """
    if config.data.documents == "ignore":
        return
    for name, kind in running_kinds(config).items():
        if kind.noisy_stream and kind.data == "text":
            sources = config.stages[name].train or config.data.train
            yield f"fill in stage {name}", _described(config, sources)


def _described(config: Config, sources: tuple[SourceConfig, ...]) -> str:
    length, size = config.batch.sequence_length, config.diffusion.block_size
    for source in sources:
        if not os.path.isfile(f"{source.prefix}.idx"):
            return f"not counted: {source.prefix}.idx does not exist"
    try:
        shares = [fill_share(source.prefix, length, size) for source in sources]
    except UserError as error:
        return f"not counted: {error}"
    weights = [source.weight for source in sources]
    share = sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(weights)
    return (
        f"{share:.1%} of the noisy stream are end tokens after documents, up to whole blocks of {size}; as many "
        "blocks are left out, at random"
    )
