"""The influence of each token through the whole model: exactly that of visibility, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import naive
import pytest
import torch
from oracle import logits, pair, tiny_config
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor

from nld_train.config.schema import Config
from nld_train.model import streams
from nld_train.model.ministral3 import Ministral3Model

pytestmark = pytest.mark.usefixtures("groups")
BACKENDS = ["dense", "chunked", "flex", "split", "decomposed"]
# Length 18 goes beyond the original length of 16. Blocks of 4 divide neither the length nor these documents.
ONE_DOCUMENT, THREE_DOCUMENTS = [0] * 18, [0] * 7 + [1] * 1 + [2] * 10
BLOCK_SIZE = 4


@pytest.fixture(autouse=True)
def forget_contexts() -> Iterator[None]:
    yield
    streams.clear()


def model_and_tokens(attention: str, length: int) -> tuple[Config, Ministral3Model, Tensor]:
    """A model of two layers, and random streams `[1, 2L]` of unrelated tokens in both halves."""
    config = tiny_config(execution__attention=attention, diffusion__block_size=BLOCK_SIZE)
    tokens = torch.randint(0, 67, (1, 2 * length), generator=torch.Generator().manual_seed(3))
    return config, pair(config)[0], tokens


def reachable(sees: list[list[bool]], layers: int) -> list[set[int]]:
    """Which tokens each token can depend on: itself, and through every layer all that those it sees depended on."""
    depends = [{index} for index in range(len(sees))]
    for _ in range(layers):
        seen = [[other for other, on in enumerate(row) if on] for row in sees]
        depends = [
            set.union(own, *(depends[other] for other in others)) for own, others in zip(depends, seen, strict=True)
        ]
    return depends


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize(
    "documents",
    [pytest.param(ONE_DOCUMENT, id="one document", marks=pytest.mark.long), pytest.param(THREE_DOCUMENTS, id="three")],
)
@torch.no_grad()
def test_a_flipped_token_changes_the_logits_that_may_see_it_and_no_others(
    attention: str, documents: Sequence[int]
) -> None:
    """Tokens of both streams are flipped one by one. What may not see it keeps its logits to the last bit.

    So no noisy token changes a clean logit, no clean token the noisy logits of its own or an earlier block, and no
    document another one; and each token that is visible does change something.
    """
    length = len(documents)
    config, model, tokens = model_and_tokens(attention, length)
    documents_tensor = torch.tensor([documents])
    before = logits(config, model, tokens, documents_tensor, two_streams=True)[0]
    sees = naive.visibility(documents, BLOCK_SIZE, True)
    depends = reachable(sees, config.model.num_hidden_layers)
    for index in range(0, 2 * length, 3 if attention in ("flex", "split") else 1):  # slow without compilation
        flipped = tokens.clone()
        flipped[0, index] = (flipped[0, index] + 29) % 67
        after = logits(config, model, flipped, documents_tensor, two_streams=True)[0]
        difference = (after - before).abs().amax(dim=1).tolist()
        for row in range(2 * length):
            if index not in depends[row]:
                assert difference[row] == 0.0, f"token {index} reached row {row}"
            elif sees[row][index]:
                assert difference[row] > 1e-6, f"token {index} did not reach row {row}"


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("documents", [ONE_DOCUMENT, THREE_DOCUMENTS], ids=["one document", "three documents"])
@torch.no_grad()
def test_the_clean_half_is_the_ar_forward(attention: str, documents: Sequence[int]) -> None:
    length = len(documents)
    config, model, tokens = model_and_tokens(attention, length)
    joint = logits(config, model, tokens, torch.tensor([documents]), two_streams=True)[:, length:]
    alone = logits(config, model, tokens[:, length:], torch.tensor([documents]), two_streams=False)
    assert_close_to_rounding(joint, alone, forward_additions(config.model, length))


@torch.no_grad()
def test_a_packed_document_is_the_document_alone() -> None:
    """Positions, blocks and attention of a document do not depend on what it was packed with."""
    length = len(THREE_DOCUMENTS)
    config, model, tokens = model_and_tokens("chunked", length)
    packed = logits(config, model, tokens, torch.tensor([THREE_DOCUMENTS]), two_streams=True)[0]
    for name in (0, 1, 2):
        indices = [index for index in range(length) if THREE_DOCUMENTS[index] == name]
        both = [*indices, *(index + length for index in indices)]
        own = logits(config, model, tokens[:, both], torch.tensor([[0] * len(indices)]), two_streams=True)[0]
        assert_close_to_rounding(packed[both], own, forward_additions(config.model, length))


@torch.no_grad()
def test_rows_of_a_micro_batch_do_not_mix() -> None:
    """Rows with equal documents and rows with different ones give the same logits as each row alone."""
    # In this order, grouping equal rows and restoring the order are different permutations.
    rows = [ONE_DOCUMENT, THREE_DOCUMENTS, [0] * 3 + [1] * 15, ONE_DOCUMENT]
    config = tiny_config(diffusion__block_size=BLOCK_SIZE)
    model, _ = pair(config)
    tokens = torch.randint(0, 67, (4, 36), generator=torch.Generator().manual_seed(3))
    together = logits(config, model, tokens, torch.tensor(rows), two_streams=True)
    for row, documents in enumerate(rows):
        alone = logits(config, model, tokens[row : row + 1], torch.tensor([documents]), two_streams=True)
        assert_close_to_rounding(together[row : row + 1], alone, forward_additions(config.model, 18))
