"""The specification in plain loops, written from its words and formulas: slow, and independent of what is tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Documents = Sequence[int]


def position_in_document(documents: Documents, index: int) -> int:
    """Number of tokens of the same document directly before this one."""
    position = 0
    while index - position > 0 and documents[index - position - 1] == documents[index]:
        position += 1
    return position


def block_of(documents: Documents, index: int, block_size: int) -> tuple[int, int]:
    """A name for a token's block: where its document starts, and the block counted from there."""
    position = position_in_document(documents, index)
    return index - position, position // block_size


def may_see(
    documents: Documents, block_size: int, two_streams: bool, query: int, key: int, whole_blocks: bool = False
) -> bool:
    """Whether the token at `query` of the stacked streams sees the one at `key`: the three cases, one after another.

    With `whole_blocks` a clean token sees its whole block, not only the tokens before it.
    """
    length = len(documents)
    noisy_query, noisy_key = (two_streams and index < length for index in (query, key))
    index, other = query % length, key % length
    if documents[index] != documents[other]:
        return False
    document, block = block_of(documents, index, block_size)
    other_document, other_block = block_of(documents, other, block_size)
    assert document == other_document
    if noisy_query and noisy_key:
        return block == other_block
    if noisy_query:
        return other_block < block
    if noisy_key:
        return False
    return other <= index or (whole_blocks and block == other_block)


def visibility(
    documents: Documents, block_size: int, two_streams: bool, whole_blocks: bool = False
) -> list[list[bool]]:
    """The whole matrix of one row of a batch, queries first."""
    total = len(documents) * (2 if two_streams else 1)
    return [
        [may_see(documents, block_size, two_streams, query, key, whole_blocks) for key in range(total)]
        for query in range(total)
    ]


# A noisy token: the index of the clean token that it hides (None for fill), its position, where its document starts,
# and its block counted from there.
NoisyToken = tuple[int | None, int, int, int]


def noisy_tokens(documents: Documents, block_size: int, offset: int = 0) -> list[NoisyToken]:
    """The noisy stream of a sample whose documents are those of its L tokens and of the next one, with fill.

    The tokens of a document before `offset` are block -1, which is never filled.
    """
    found: list[NoisyToken] = []
    for index in range(len(documents) - 1):
        position = position_in_document(documents, index)
        start = index - position
        block = (position - offset) // block_size if position >= offset else -1
        found.append((index, position, start, block))
        if documents[index + 1] != documents[index] and block >= 0:
            while (position + 1 - offset) % block_size:
                position += 1
                found.append((None, position, start, block))
    return found


def visibility_of_streams(
    documents: Documents,
    blocks: Sequence[int],
    begins: Sequence[int],
    causal: bool = False,
    clean_blocks: Sequence[object] | None = None,
) -> list[list[bool]]:
    """The matrix of a noisy stream of any length before a clean one, queries first.

    `blocks` and `begins` are of the noisy tokens: the names of their blocks, and where those begin in the clean stream.
    With `clean_blocks`, the names of the blocks of the clean tokens, these see their whole block.
    """
    count, total = len(blocks), len(blocks) + len(documents)

    def sees(query: int, key: int) -> bool:
        if query < count and key < count:
            return blocks[query] == blocks[key] and (not causal or key <= query)
        if query < count:
            begin, clean = begins[query], key - count
            return clean < begin and documents[clean] == documents[begin]
        if key < count or documents[key - count] != documents[query - count]:
            return False
        return key <= query or (clean_blocks is not None and clean_blocks[key - count] == clean_blocks[query - count])

    return [[sees(query, key) for key in range(total)] for query in range(total)]


def clean_block_names(
    documents: Documents, block_size: int, answers: Sequence[bool] | None = None
) -> list[tuple[int, int]]:
    """A name for the block of each clean token: where counting began, at its document or its answer, and the number.

    With `answers` counting begins anew where an answer does, and goes on after its end.
    """
    names = []
    for index in range(len(documents)):
        first = index - position_in_document(documents, index)
        origin = first
        for other in range(first, index + 1):
            if answers is not None and answers[other] and (other == first or not answers[other - 1]):
                origin = other
        names.append((origin, (index - origin) // block_size))
    return names


def noisy_position(documents: Documents, blocks: Sequence[int], begins: Sequence[int], index: int) -> int:
    """The position of a noisy token: that at which its block begins, and the tokens of the block before it."""
    before = sum(block == blocks[index] for block in blocks[:index])
    return position_in_document(documents, begins[index]) + before


def visible_pairs(length: int, block_size: int, whole_blocks: bool = False) -> int:
    """Ones in the matrix of one document in two streams."""
    return sum(map(sum, visibility([0] * length, block_size, True, whole_blocks)))


Nll = Callable[[int, int], float]


def terms(
    averaging: str,
    supervised: Sequence[Sequence[bool]],
    maskable: Sequence[Sequence[bool]],
    masked: Sequence[Sequence[bool]],
    probability: Sequence[Sequence[float]],
    ar_nll: Nll,
    diffusion_nll: Nll,
) -> tuple[float, float]:
    """Both raw terms, before alpha, of a whole global batch, by the table of averagings.

    `ar_nll(n, i)` and `diffusion_nll(n, i)` give the negative log-likelihood of row i of sequence n; whatever adds and
    multiplies like a number will do. `probability[n][i]` is the masking probability.
    """
    ar_rows = [[ar_nll(n, i) for i, on in enumerate(row) if on] for n, row in enumerate(supervised)]
    noisy_rows = [
        [diffusion_nll(n, i) / float(probability[n][i]) for i, on in enumerate(row) if on]
        for n, row in enumerate(masked)
    ]
    if averaging == "sequence":
        return tuple(sum(_mean(row, len(row)) for row in rows) / len(rows) for rows in (ar_rows, noisy_rows))  # type: ignore[return-value]
    count_ar, count_masked = sum(map(len, ar_rows)), sum(map(len, noisy_rows))
    count_maskable = sum(map(sum, maskable))
    below = {
        "global": (count_ar, count_maskable),
        "masked": (count_ar, count_masked),
        "contributing": (count_ar + count_masked, count_ar + count_masked),
    }[averaging]
    return _mean([x for row in ar_rows for x in row], below[0]), _mean([x for row in noisy_rows for x in row], below[1])


def _mean(values: Sequence[float], count: int) -> float:
    """An empty sum over a zero count is 0."""
    total = 0.0
    for value in values:
        total = total + value
    return total / count if count else 0.0


def yarn_frequencies(
    head_dim: int, theta: float, factor: float, original: int, beta_fast: float, beta_slow: float
) -> list[float]:
    """Inverse frequencies of YaRN (Peng et al. 2023, section 3.2, with the ramp over dimensions of its public code)."""

    def dimension(turns: float) -> float:
        """Where a frequency makes so many turns within the original length."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(beta_fast)), 0), min(math.ceil(dimension(beta_slow)), head_dim - 1)
    found = []
    for pair in range(head_dim // 2):
        plain = theta ** (-2 * pair / head_dim)
        stretched_share = min(max((pair - low) / (high - low or 0.001), 0.0), 1.0)
        found.append(plain / factor * stretched_share + plain * (1 - stretched_share))
    return found


def query_scale(position: int, beta: float, original: int) -> float:
    """Llama-4's temperature for long contexts."""
    return 1 + beta * math.log(1 + position // original)


def answer_tokens(
    documents: Documents, answers: Sequence[bool], block_size: int, from_answer: bool, fill: bool
) -> list[tuple[int | None, int, int, bool]]:
    """The noisy stream of the answers of a sample, token by token.

    Of each token: its index in the clean stream (None for fill), the index of the first token of its answer, the index
    at which its block begins, and whether it is maskable.
    """
    found: list[tuple[int | None, int, int, bool]] = []
    index = 0
    while index < len(documents):
        if not answers[index]:
            index += 1
            continue
        start = end = index
        while end < len(documents) and answers[end] and documents[end] == documents[start]:
            end += 1
        origin = start if from_answer else start - position_in_document(documents, start)
        begin = origin
        while begin + block_size <= start:
            begin += block_size
        while begin < end:
            for token in range(begin, begin + block_size):
                if token < end:
                    found.append((token, start, begin, token >= start))
                elif fill:
                    found.append((None, start, begin, True))
            begin += block_size
        index = end
    return found
