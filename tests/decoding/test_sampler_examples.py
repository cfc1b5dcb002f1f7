"""What the trained sampler sees, and the examples that it learns from."""

from __future__ import annotations

import itertools
import math
from typing import Any

import naive_oracle
import pytest
import torch
from naive_decoding import Reader
from sampler_cases import OPTIONS, PROMPTS, Models, collected, views_of
from tiny_models import CountingEngine
from tolerance import approx_to_rounding

from nld_train.decoding import DecodeOptions, FixedNumber
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.policies.sampler_network import Observation, SamplerShape, TrainedSampler
from nld_train.evaluation.sampler_data import Examples, collect
from nld_train.evaluation.sampler_trajectories import collect_both, true_blocks


def test_the_papers_size() -> None:
    """Trained parameters and inputs; the table of components is no parameter."""
    assert SamplerShape().features == TrainedSampler(SamplerShape(), 100).enter.in_features == 144
    number = sum(parameter.numel() for parameter in TrainedSampler(SamplerShape(), 100).parameters())
    assert 4.75e6 < number < 4.85e6


@pytest.mark.parametrize(
    "changes",
    [{"width": 0}, {"width": 50, "heads": 4}, {"layers": 0}, {"components": 0}, {"components_of": "pair"}],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SamplerShape(**changes)


def test_what_it_sees(models: Models) -> None:
    for view in views_of(models["random"], PROMPTS, OPTIONS):
        seen = Observation.of(view)
        for row, index in itertools.product(range(len(view.sequences)), range(view.tokens.shape[1])):
            statistics = seen.statistics[row, index].tolist()
            assert bool(seen.real[row, index]) == (index < int(view.sizes[row]))
            if not view.masked[row, index]:
                assert seen.top[row, index].tolist() == [int(view.tokens[row, index])] * 3
                assert statistics == [1, 1, 1, 0]
                continue
            probabilities = sorted(view.logits[row, index].double().softmax(-1).tolist(), reverse=True)
            top = [view.logits[row, index].softmax(-1)[token].item() for token in seen.top[row, index]]
            assert top == approx_to_rounding(probabilities[:3], 60, scale=1.0)
            entropy = -sum(p * torch.tensor(p).double().log().item() for p in probabilities if p > 0)
            expected = [probabilities[0], probabilities[0] - probabilities[1], sum(probabilities[:3]), entropy]
            assert statistics == approx_to_rounding(expected, 60, scale=math.log(60))


def test_labels_are_what_was_finally_committed(models: Models) -> None:
    """Against the decoded text itself; what a stop left masked has no label."""
    engine = CountingEngine(models["trained"])
    for prompt in PROMPTS:
        found = collected(engine, [prompt], 1)
        views = views_of(models["trained"], [prompt], OPTIONS)
        text = prompt + decode(engine, [prompt], "diffusion", OPTIONS, FixedNumber(1)).token_ids[0]
        checked = 0
        for number, view in enumerate(view for view in views if bool(view.masked.any())):
            for index in torch.nonzero(view.masked[0]).flatten().tolist():
                position = int(view.starts[0]) + index
                if position < len(text):
                    assert bool(found.supervised[number, index])
                    right = int(view.logits[0, index].argmax()) == text[position]
                    assert bool(found.labels[number, index]) == right
                    checked += 1
        assert checked > 20
        assert not bool((found.labels & ~found.supervised).any())


def test_a_batch_gives_the_examples_of_its_rows(models: Models) -> None:
    engine = CountingEngine(models["trained"])

    def rows(found: Examples) -> list[tuple]:
        return sorted(
            (found.seen.top[n].tolist(), found.supervised[n].tolist(), found.labels[n].tolist())
            for n in range(len(found))
        )

    alone = [rows(collected(engine, [prompt], 1)) for prompt in PROMPTS]
    assert rows(collected(engine, PROMPTS, 4)) == sorted(row for found in alone for row in found)


def test_blocks_without_masks_teach_nothing(models: Models) -> None:
    engine, options = CountingEngine(models["random"]), DecodeOptions(8, block_length=1)
    assert collect(engine, PROMPTS, options, 4) is None
    with pytest.raises(ValueError, match="a sampler needs blocks of 2 or more"):
        collect_both(engine, PROMPTS, [None] * len(PROMPTS), [options], 4)


def test_blocks_of_true_text() -> None:
    """Whole blocks up to the limit that fit; the token that ends a text fills its last one."""
    options = DecodeOptions(12, block_length=4, stop_tokens=(3,))
    cut, ended, long = (5, 6, 7, 8, 9, 10), (5, 6, 7, 8, 9, 3), tuple(range(10, 40))
    prompts = [[1], [1, 2], [1], [4], [1] * 10]
    found = true_blocks(prompts, [cut, ended, None, long, ended], options, context_length=16)
    assert [(len(block.before), block.tokens) for block in found] == [
        (1, (5, 6, 7, 8)),
        (2, (5, 6, 7, 8)),
        (6, (9, 3, 3, 3)),
        (1, (10, 11, 12, 13)),
        (5, (14, 15, 16, 17)),
        (9, (18, 19, 20, 21)),
        (10, (5, 6, 7, 8)),
    ]
    assert found[2].before == (1, 2, 5, 6, 7, 8)


def test_trajectories_towards_the_true_text(models: Models, readers: dict[str, Reader]) -> None:
    """Against blocks denoised by full forwards: a pass commits what is true, else the most confident position."""
    options = DecodeOptions(10, block_length=5)
    true = [tuple(range(20, 30)), tuple(range(13, 23))]
    prompts = [[18, 19], [10, 11, 30]]
    found = collect_both(CountingEngine(models["trained"]), prompts, true, [options], 8)
    slow = collect(CountingEngine(models["trained"]), prompts, options, 8)
    assert slow is not None
    assert (found.one_per_pass, found.true_text) == (4, 4)
    states = [found.examples.pick(torch.arange(len(slow), len(found.examples)))]
    expected, wrong = [], 0
    for block in true_blocks(prompts, true, options, 96):
        naive = naive_oracle.Block(readers["trained"], list(block.before), 5, seed=True, safety="greedy")
        naive.target = list(block.tokens)
        final, state = naive.finish(naive.start, naive.matching), naive.start
        wrong += final != naive.target
        while any(state[1]):
            predictions, confident = naive.predict(state)
            expected.append((state[1], [p == f and m for p, f, m in zip(predictions, final, state[1], strict=True)]))
            state = naive.commit(state, naive.matching(predictions, confident, state[1]), predictions)
    rows = zip(states[0].supervised.tolist(), states[0].labels.tolist(), strict=True)
    assert sorted(rows) == sorted(expected)
    assert len(expected) < len(slow), "it commits several at once"
    assert wrong, "and it ends at another text where it must"


def test_both_kinds_and_all_lengths_are_one_set(models: Models) -> None:
    engine, prompts = CountingEngine(models["trained"]), PROMPTS[:2]
    true = [tuple(range(20, 36)), None]
    settings = [DecodeOptions(16, block_length=length, stop_tokens=(3, 49)) for length in (4, 8)]
    found = collect_both(engine, prompts, true, settings, 4)
    parts = [collect(engine, prompts, options, 4) for options in settings]
    first = 0
    for number, part in enumerate(parts):
        assert part is not None
        here = found.examples.pick(torch.arange(first, first + len(part)))
        width = settings[number].block_length
        assert torch.equal(here.supervised[:, :width], part.supervised)
        assert torch.equal(here.labels[:, :width], part.labels)
        assert torch.equal(here.seen.top[:, :width], part.seen.top)
        assert not bool(here.supervised[:, width:].any() | here.seen.real[:, width:].any())
        first += len(part)
    assert found.examples.labels.shape[1] == 8
    assert len(found.examples) > sum(map(len, filter(None, parts)))
    assert found.true_text == 4 + 2
    assert len(found.examples.blocks.unique()) == found.one_per_pass + found.true_text
