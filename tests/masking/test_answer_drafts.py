"""The blocks of conversations on which a drafter adapter is trained: after random prefixes, inside answers alone."""

from __future__ import annotations

from collections import Counter

import naive
import numpy as np
import pytest
import torch

from nld_train.config.schema import AdapterConfig
from nld_train.data.draft_batch import DraftCollator
from nld_train.masking.drafting import DraftDraws, draft_stream, draw_drafts
from nld_train.masking.noisy_stream import FILL, INERT

ADAPTER = AdapterConfig(rank=2, lora_alpha=4, block_size=4, temperature=3.0, top_k=5, greedy_share=0.5)


def random_sample(number: int) -> tuple[list[int], list[bool]]:
    """Conversations and answers of L+1 tokens; the last ones are padding, a document of its own."""
    generator = np.random.default_rng(number)
    length, padding = int(generator.integers(2, 40)), int(generator.integers(1, 5))
    documents = np.cumsum(generator.random(length) < 0.12).tolist()
    answers = (np.cumsum(generator.random(length) < 0.3) % 2 == 1).tolist()
    return [*documents, *[documents[-1] + 1] * padding], [*answers, *[False] * padding]


def naive_blocks(documents: list[int], answers: list[bool], draws: DraftDraws, size: int) -> list[list[int | None]]:
    """The tokens of each block, None for fill, one answer after another."""
    found: list[list[int | None]] = []
    number, index = 0, 0
    while index < len(documents) - 1:
        if not answers[index]:
            index += 1
            continue
        answer = [index]
        while answers[answer[-1] + 1] and documents[answer[-1] + 1] == documents[index]:
            answer.append(answer[-1] + 1)
        index = answer[-1] + 1
        # Without a token before it there is no prediction of the first one.
        after = answer[1:] if naive.position_in_document(documents, answer[0]) == 0 else answer
        begin = int(float(draws.prefixes[number]) * min(size, max(0, len(after) - 1)))
        while begin + 1 < len(after):  # after the last token of an answer decoding has ended
            block: list[int | None] = list(after[begin : begin + size])
            found.append(block + [None] * (size - len(block)))
            begin += size
        number += 1
    return found


@pytest.mark.parametrize("size", [3, 8])
def test_the_stream_is_the_naive_one(size: int) -> None:
    counted: Counter[str] = Counter()
    for number in range(60):
        documents, answers = random_sample(number)
        length = len(documents) - 1
        draws = draw_drafts(1, "drafter", number, 2 * length, 0.1)
        expected = naive_blocks(documents, answers, draws, size)
        capacity = size * len(expected) + number % 3 * size
        stream = draft_stream(np.array(documents), np.array(answers), draws, size, capacity)
        blocks = [
            (begins[0], [None if source == FILL else source for source in sources])
            for sources, begins in _blocks(stream.sources.tolist(), stream.begins.tolist(), stream.blocks.tolist())
            if sources[0] != INERT
        ]
        assert blocks == [(block[0], block) for block in expected]
        assert (stream.maskable == (stream.sources != INERT)).all()
        counted["fill"] += sum(None in block for block in expected)
        counted["blocks"] += len(expected)
    assert 0 < counted["fill"] < counted["blocks"]


def _blocks(sources: list[int], begins: list[int], blocks: list[int]) -> list[tuple[list[int], list[int]]]:
    numbers = sorted(set(blocks))
    return [
        tuple(
            [values[index] for index in range(len(blocks)) if blocks[index] == number] for values in (sources, begins)
        )
        for number in numbers
    ]  # type: ignore[misc]


def test_every_token_of_a_long_answer_begins_a_block_as_often_as_any_other() -> None:
    """But the last one. Of a short answer its first tokens do, as often as each other."""
    begins: Counter[int] = Counter()
    documents, answers = np.zeros(26, np.int64), np.arange(26) >= 5
    answers[10:12] = False  # the answers are 5 .. 9 and 12 .. 24
    for number in range(2000):
        draws = draw_drafts(1, "drafter", number, 25, 0.1)
        stream = draft_stream(documents, answers, draws, 8, 40)
        begins.update(set(stream.begins[stream.sources != INERT].tolist()))
    assert begins.keys() == {*range(5, 9), *range(12, 24)}
    for expected, answer in ((500, range(5, 9)), (250, range(12, 24))):
        # Binomial counts: a standard deviation of 19 and 15.
        assert max(abs(begins[index] - expected) for index in answer) < 90


@pytest.mark.parametrize("capacity", [8, None])
def test_drafts_of_a_batch_lie_in_answers(capacity: int | None) -> None:
    """The seed follows at least one token, the drafts end with the answer or its fill, and prompts have none."""
    rows = [sample for number in range(400) if len((sample := random_sample(number))[0]) == 30][:4]
    assert len(rows) == 4
    documents, answers = (torch.tensor([row[part] for row in rows]) for part in (0, 1))
    tokens = torch.randint(5, 60, documents.shape, generator=torch.Generator().manual_seed(0))
    samples = {"tokens": tokens, "documents": documents, "answers": answers, "sample_index": torch.arange(4)}
    batch = DraftCollator(ADAPTER.block_size, ADAPTER.greedy_share, "drafter", 1, capacity).of(samples)
    assert batch.noisy_length == (capacity or 29)
    # A seed is predicted by the row of the token before it.
    begins = (batch.tensors["seed_rows"] // len(tokens) + 1).tolist()
    in_sample = (batch.tensors["seed_indices"] // batch.noisy_length).tolist()
    expected = Counter[tuple[int, int]]()
    for number, (row_documents, row_answers) in enumerate(rows):
        draws = draw_drafts(1, "drafter", number, 29, 0.5)
        expected.update((number, block[0]) for block in naive_blocks(row_documents, row_answers, draws, 4))  # type: ignore[misc]
    found = Counter(zip(in_sample, begins, strict=True))
    assert found <= expected
    assert (found == expected) == (capacity is None)
    for row, begin in found:
        assert answers[row, begin]
        assert documents[row, begin] == documents[row, begin - 1]
