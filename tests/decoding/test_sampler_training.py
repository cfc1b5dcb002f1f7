"""What the trained sampler learns, and when its training stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sampler_cases import SMALL
from tolerance import assert_close_to_rounding
from torch import Tensor

from nld_train.decoding.policies.sampler_network import Observation, TrainedSampler
from nld_train.evaluation import sampler_training
from nld_train.evaluation.sampler_data import Examples
from nld_train.evaluation.sampler_training import (
    BestOnHeldOut,
    SamplerTraining,
    area_under_curve,
    component_table,
    confidence,
    sampler_scores,
    train_sampler,
)


def test_it_learns_on_blocks_that_it_has_not_seen(sampler: TrainedSampler, examples: tuple[Examples, Examples]) -> None:
    _, unseen = examples
    labels = unseen.labels[unseen.supervised]
    learned = area_under_curve(sampler_scores(sampler, unseen), labels)
    untrained = area_under_curve(sampler_scores(TrainedSampler(SMALL, 60).eval(), unseen), labels)
    plain = area_under_curve(confidence(unseen), labels)
    print(f"AUC {learned:.3f}, of confidence {plain:.3f}, untrained {untrained:.3f}, right {labels.float().mean():.2f}")
    assert learned > 0.8
    assert learned > plain
    assert learned > untrained + 0.1


def test_training_repeats_and_leaves_the_global_generator_alone(
    sampler: TrainedSampler, examples: tuple[Examples, Examples]
) -> None:
    before = torch.get_rng_state()
    settings = SamplerTraining(steps=3, batch_size=16)
    first, second = (train_sampler(SMALL, sampler.table, examples[0], settings) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    """Of the embeddings of three tokens side by side, at supervised positions alone."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(50, 4, generator=generator) * torch.linspace(3, 0.1, 4) + 5
    top = torch.randint(0, 50, (40, 6, 3), generator=generator)
    supervised = torch.rand(40, 6, generator=generator) < 0.7
    seen = Observation(top, torch.zeros(40, 6, 4), torch.ones(40, 6).bool())
    examples = Examples(seen, supervised, supervised, torch.arange(40))
    table = component_table(embedding, examples, 4)
    triples = embedding[top[supervised]].flatten(1)
    u, s, _ = torch.linalg.svd(triples - triples.mean(0), full_matrices=False)
    expected = (u * s)[:, :4] / (s[0] / len(triples) ** 0.5)
    found = sum(table[column, top[supervised][:, column]] for column in range(3))
    # Of the sums over all triples and 12 columns, before the division by a singular value; singular values that are
    # close to each other turn their vectors by more than rounding does.
    assert_close_to_rounding(found.abs(), expected.abs(), len(triples) * 12, multiple=16)
    assert component_table(embedding, examples, 20).shape == (3, 50, 20)
    assert not bool(component_table(embedding, examples, 20)[..., 12:].any())


def test_what_the_network_reads_of_a_triple() -> None:
    """The components of its three tokens at their positions are added up; the four figures stand beside them."""
    sampler = TrainedSampler(SMALL, 60)
    sampler.table.copy_(torch.randn(sampler.table.shape, generator=torch.Generator().manual_seed(1)))
    read: list[Tensor] = []
    sampler.enter.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    seen = Observation(torch.tensor([[[4, 9, 30]]]), torch.tensor([[[0.5, 0.2, 0.9, 1.5]]]), torch.ones(1, 1).bool())
    sampler(seen)
    expected = sampler.table[0, 4] + sampler.table[1, 9] + sampler.table[2, 30]
    assert torch.equal(read[0][0, 0], torch.cat([expected, torch.tensor([0.5, 0.2, 0.9, 1.5])]))


def test_training_stops_where_the_held_out_auc_has_stopped_rising(
    sampler: TrainedSampler, examples: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AUC is written out by hand; the weights are those of its maximum, not of the end."""
    scores = iter([0.6, 0.8, 0.7, 0.8, 0.75, 0.9])
    weights: list[Tensor] = []

    def scored(trained: TrainedSampler, *_: object) -> Tensor:
        weights.append(trained.leave.weight.clone())
        return torch.zeros(1)

    monkeypatch.setattr(sampler_training, "sampler_scores", scored)
    monkeypatch.setattr(sampler_training, "area_under_curve", lambda *_: next(scores))
    settings = SamplerTraining(steps=40, batch_size=8, evaluate_every=2, patience=3)
    best, steps = BestOnHeldOut(examples[1], settings), []
    found = train_sampler(SMALL, sampler.table, examples[0], settings, lambda step, _: steps.append(step), best)
    assert (best.step, best.auc) == (4, 0.8)
    assert steps[-1] == 4 + 2 * 3
    assert torch.equal(found.leave.weight, weights[1])
    assert not torch.equal(weights[1], weights[-1])
    assert not found.training


def test_without_two_kinds_of_labels_all_steps_are_taken(
    sampler: TrainedSampler, examples: tuple[Examples, Examples]
) -> None:
    alike = replace(examples[1], labels=examples[1].supervised)
    settings = SamplerTraining(steps=5, batch_size=8, evaluate_every=1, patience=1)
    best, steps = BestOnHeldOut(alike, settings), []
    train_sampler(SMALL, sampler.table, examples[0], settings, lambda step, _: steps.append(step), best)
    assert (steps[-1], best.auc, best.step) == (5, None, 0)


def test_area_under_curve() -> None:
    labels = torch.tensor([False, True, False, True, True])
    scores = torch.tensor([0.1, 0.3, 0.3, 0.9, 0.05])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert area_under_curve(scores, labels) == pytest.approx(float(sum(pairs)) / 6)
    assert area_under_curve(torch.zeros(5), labels) == 0.5
    assert area_under_curve(labels.float(), labels) == 1.0
    assert area_under_curve(scores, torch.ones(5).bool()) is None
