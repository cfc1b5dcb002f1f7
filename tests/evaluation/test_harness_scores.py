"""Log-likelihoods against full forwards of a stock model, and the bound against its definition."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations, product
from math import exp, sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from tolerance import forward_additions, rounding_bound
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM

from nld_train.decoding.engines.engine import Engine
from nld_train.evaluation.harness.bound import BoundSettings, copies_pattern, score_by_bound
from nld_train.evaluation.harness.likelihood import score_exactly
from nld_train.evaluation.harness.masks import draw_masks
from nld_train.evaluation.harness.requests import Scoring
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import dense_mask

MASK, VOCABULARY = 3, 14
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def stock() -> Ministral3ForCausalLM:
    torch.manual_seed(0)
    return Ministral3ForCausalLM(Ministral3Config(**SHAPE, attn_implementation="eager")).eval()


@pytest.fixture(scope="module")
def engine(stock: Ministral3ForCausalLM) -> Engine:
    from checkpoint_convert.hf_package.cached_engine import CachedEngine
    from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
    from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

    config = NemotronLabsDiffusionConfig(**SHAPE, mask_token_id=MASK, attn_implementation="sdpa")
    model = NemotronLabsDiffusionModel(config).eval()
    names = {
        name.replace("model.", "encoder.", 1).replace("lm_head", "diffusion_head"): value
        for name, value in stock.state_dict().items()
    }
    model.load_state_dict(names)
    return CachedEngine(model.encoder, model.diffusion_head)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def naive(stock: Ministral3ForCausalLM, tokens: list[int], block: int = 0) -> Tensor:
    """Log-probabilities float64 `[n, V]` by one forward without a cache; the last `block` tokens see everything."""
    visible = torch.ones(len(tokens), len(tokens)).tril().bool()
    visible[len(tokens) - block :] = True
    mask = torch.zeros(1, 1, *visible.shape).masked_fill(~visible, float("-inf"))
    logits = stock(torch.tensor([tokens]), attention_mask=mask, use_cache=False).logits[0].double()
    logits[:, MASK] = float("-inf")
    return logits.log_softmax(-1)


def texts(seed: int, sizes: list[tuple[int, int]]) -> list[Scoring]:
    generator = np.random.default_rng(seed)
    allowed = [token for token in range(VOCABULARY) if token != MASK]
    draw = lambda size: tuple(int(token) for token in generator.choice(allowed, size))  # noqa: E731
    return [Scoring(draw(context), draw(continuation)) for context, continuation in sizes]


def naive_sum(stock: Ministral3ForCausalLM, request: Scoring) -> float:
    values = naive(stock, [*request.context, *request.continuation])
    first = len(request.context) - 1
    return sum(float(values[first + i, token]) for i, token in enumerate(request.continuation))


def rounding_of(stock: Ministral3ForCausalLM, request: Scoring) -> float:
    """Rounding of a sum over the continuation, whose terms are as exact as the largest log-probability."""
    text = [*request.context, *request.continuation]
    additions = forward_additions(SHAPE, len(text)) * len(request.continuation)
    return rounding_bound(naive(stock, text), additions)


def ignore(_: int) -> None:
    """The progress is not shown."""


SIZES = [(5, 3), (1, 7), (9, 1), (30, 12), (2, 1), (12, 30), (9, 1)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("logits_at_once", [10**6, 150])
def test_ar_is_the_sum_of_log_softmax(
    stock: Ministral3ForCausalLM, engine: Engine, batch_size: int, logits_at_once: int
) -> None:
    requests = texts(1, SIZES)
    requests += [replace(requests[2], continuation=(4,))]
    completed: list[int] = []
    scores = score_exactly(engine, requests, batch_size, completed.append, logits_at_once)
    for request, score in zip(requests, scores, strict=True):
        assert score.loglikelihood == pytest.approx(naive_sum(stock, request), abs=rounding_of(stock, request))
        assert score.standard_error == 0
    assert sum(completed) == len(requests)


def test_ar_knows_what_greedy_decoding_gives(stock: Ministral3ForCausalLM, engine: Engine) -> None:
    context = [4, 7, 9]
    text = list(context)
    for _ in range(6):
        text.append(int(naive(stock, text)[-1].argmax()))
    right = Scoring(tuple(context), tuple(text[3:]))
    wrong = replace(right, continuation=(*right.continuation[:-1], (right.continuation[-1] + 1) % 3))
    assert [score.greedy for score in score_exactly(engine, [right, wrong], 2, ignore, 40)] == [True, False]


def definition(stock: Ministral3ForCausalLM, request: Scoring, block_length: int) -> float:
    """`-E_t E_masks [sum over hidden tokens of CE / t]` per block: t by quadrature, masks by enumeration."""
    nodes, gauss = np.polynomial.legendre.leggauss(12)
    levels, gauss = (nodes + 1) / 2, gauss / 2
    total = 0.0
    for start in range(0, len(request.continuation), block_length):
        before = [*request.context, *request.continuation[:start]]
        block = request.continuation[start : start + block_length]
        for hidden in subsets(len(block)):
            values = naive(stock, before + [MASK if i in hidden else t for i, t in enumerate(block)], block=len(block))
            inside = sum(float(values[len(before) + i, block[i]]) for i in hidden)
            chance = levels ** len(hidden) * (1 - levels) ** (len(block) - len(hidden))
            total += float((gauss * chance / levels).sum()) * inside
    return total


def subsets(size: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(size), count) for count in range(1, size + 1)))


@pytest.mark.parametrize(("size", "block_length"), [(1, 4), (4, 4), (7, 4), (9, 3), (4, 1)])
def test_short_blocks_are_the_definition_exactly(
    stock: Ministral3ForCausalLM, engine: Engine, size: int, block_length: int
) -> None:
    (request,) = texts(2, [(6, size)])
    ((total, error),) = score_by_bound(engine, [request], 1, BoundSettings(block_length, samples=15), ignore)
    assert total == pytest.approx(definition(stock, request, block_length), abs=rounding_of(stock, request))
    assert error == 0


def test_blocks_of_one_token_are_no_bound_but_the_likelihood_of_single_masks(
    stock: Ministral3ForCausalLM, engine: Engine
) -> None:
    (request,) = texts(3, [(4, 3)])
    ((total, _),) = score_by_bound(engine, [request], 1, BoundSettings(1, samples=2), ignore)
    text, expected = list(request.context), 0.0
    for token in request.continuation:
        expected += float(naive(stock, [*text, MASK], block=1)[-1, token])
        text.append(token)
    assert total == pytest.approx(expected, abs=rounding_of(stock, request))


@pytest.mark.parametrize(("size", "block_length"), [(1, 4), (2, 2), (2, 1)])
def test_it_is_a_bound_of_a_distribution(
    stock: Ministral3ForCausalLM, engine: Engine, size: int, block_length: int
) -> None:
    """exp(bound) over all continuations sums to at most 1; to 1 where a block has one token and nothing is lost."""
    allowed = [token for token in range(VOCABULARY) if token != MASK]
    requests = [Scoring((4, 9, 5), continuation) for continuation in product(allowed, repeat=size)]
    found = score_by_bound(engine, requests, 1, BoundSettings(block_length, samples=15), ignore)
    total = sum(exp(bound) for bound, _ in found)
    if block_length == 1 or size == 1:
        # A likelihood is off by what its logarithm is off, and all of them together by no more than the worst.
        assert total == pytest.approx(1, abs=max(rounding_of(stock, request) for request in requests))
    else:
        assert 0.01 < total < 0.999


def test_sampling_estimates_the_definition_with_the_error_it_states(
    stock: Ministral3ForCausalLM, engine: Engine
) -> None:
    (request,) = texts(4, [(5, 6)])
    exact = definition(stock, request, 6)
    drawn = [BoundSettings(6, samples=16, seed=seed) for seed in range(60)]
    found = [score_by_bound(engine, [request], 1, settings, ignore)[0] for settings in drawn]
    spread = stdev(total for total, _ in found)
    assert spread > 0.05
    assert abs(fmean(total for total, _ in found) - exact) < 4 * spread / sqrt(len(found))
    stated = sqrt(fmean(error**2 for _, error in found))
    assert 0.8 * spread < stated < 2 * spread


@pytest.mark.parametrize("settings", [BoundSettings(4, 9), BoundSettings(4, 9, tokens_at_once=40, logits_at_once=900)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_and_pieces_change_nothing(
    stock: Ministral3ForCausalLM, engine: Engine, settings: BoundSettings, batch_size: int
) -> None:
    requests = texts(5, [*SIZES, (20, 3), (3, 6)])
    requests += [replace(requests[0], continuation=(4, 5, 6, 7, 8, 9))]
    alone = [score_by_bound(engine, [request], 1, BoundSettings(4, 9), ignore)[0] for request in requests]
    completed: list[int] = []
    together = score_by_bound(engine, requests, batch_size, settings, completed.append)
    assert sum(completed) == len(requests)
    for one, other, request in zip(together, alone, requests, strict=True):
        assert one == pytest.approx(other, abs=rounding_of(stock, request))
    assert min(total for total, _ in together) < -5


def test_choices_share_their_noise_and_seeds_do_not() -> None:
    first, again = draw_masks(20, 8, 10, 0, "context"), draw_masks(20, 8, 10, 0, "context")
    assert torch.equal(first.masked, again.masked)
    longer = draw_masks(23, 8, 10, 0, "context")
    assert torch.equal(first.masked[:, :16], longer.masked[:, :16])
    for other in (draw_masks(20, 8, 10, 1, "context"), draw_masks(20, 8, 10, 0, "another")):
        assert not torch.equal(first.masked, other.masked)


def test_levels_are_stratified() -> None:
    """Of a block of 10 with 10 samples every number of hidden tokens is drawn once, whatever the noise."""
    masks = draw_masks(10, 10, 10, 7, "x")
    assert sorted(masks.masked.sum(1).tolist()) == list(range(1, 11))
    assert torch.allclose(masks.weights.sum(1), torch.ones(10, dtype=torch.float64))


def test_one_copy_sees_what_training_shows() -> None:
    size, block = 11, 4
    layout = StreamLayout.of(torch.zeros(1, size, dtype=torch.int64), block, two_streams=True)
    training = dense_mask(layout)[0, 0]
    clean = 8  # the last block's clean tokens are visible to no other
    order = [*range(size, size + clean), *range(size)]
    positions = torch.tensor([*range(clean), *range(size)])
    copy = torch.tensor([-1] * clean + [0] * size)
    assert torch.equal(copies_pattern(positions, copy, block), training[order][:, order])
    two = torch.cat([copy, torch.ones(size, dtype=torch.int64)])
    pattern = copies_pattern(torch.cat([positions, torch.arange(size)]), two, block)
    assert not pattern[-size:, clean:-size].any()
    assert not pattern[clean:-size, -size:].any()
