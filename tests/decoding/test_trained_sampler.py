"""The trained sampler: what it sees, what it learns, what it commits, and whose it is."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive_oracle
import pytest
import torch
from naive_decoding import Reader
from tiny_models import MASK, CountingEngine, random_model
from tolerance import approx_to_rounding, assert_close_to_rounding
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import BlockView, DecodeOptions, FixedNumber
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.policies.commit import chosen_positions
from nld_train.decoding.policies.sampler_files import (
    embedding_of,
    fingerprint,
    load_sampler,
    require_sampler,
    save_sampler,
)
from nld_train.decoding.policies.sampler_network import Observation, SamplerShape, TrainedSampler
from nld_train.decoding.policies.trained_sampler import SamplerPolicy
from nld_train.errors import UserError
from nld_train.evaluation import sampler_training
from nld_train.evaluation.sampler_data import Examples, collect
from nld_train.evaluation.sampler_training import (
    BestOnHeldOut,
    SamplerTraining,
    area_under_curve,
    component_table,
    confidence,
    sampler_scores,
    train_sampler,
)
from nld_train.evaluation.sampler_trajectories import collect_both, true_blocks

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17], [25, 26, 20, 21, 33, 34]]
SMALL = SamplerShape(width=32, layers=2, heads=2, components=8)
OPTIONS = DecodeOptions(30, block_length=8, stop_tokens=(3, 49))


def prompts_of(seed: int, number: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, 50, (5,), generator=generator).tolist() for _ in range(number)]


@pytest.fixture(scope="module")
def examples(models: Models) -> tuple[Examples, Examples]:
    """Of the same model, from prompts that differ: to learn from, and held out."""
    engine = CountingEngine(models["trained"])
    return collected(engine, prompts_of(0, 160), 40), collected(engine, prompts_of(1, 40), 40)


def collected(engine: CountingEngine, prompts: list[list[int]], batch_size: int) -> Examples:
    found = collect(engine, prompts, OPTIONS, batch_size)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def sampler(models: Models, examples: tuple[Examples, Examples]) -> TrainedSampler:
    table = component_table(embedding_of(CountingEngine(models["trained"])), examples[0], SMALL.components)
    return train_sampler(SMALL, table, examples[0], SamplerTraining(steps=200, batch_size=64, learning_rate=3e-3))


class Watcher:
    """Commits one position per pass and keeps what it saw."""

    def __init__(self) -> None:
        self.views: list[BlockView] = []

    def choose(self, view: BlockView) -> Tensor:
        self.views.append(view)
        return FixedNumber(1).choose(view)


def views_of(model: NemotronLabsDiffusionModel, prompts: list[list[int]], options: DecodeOptions) -> list[BlockView]:
    watcher = Watcher()
    decode(CountingEngine(model), prompts, "diffusion", options, watcher)
    return watcher.views


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
    found = sum(table[place, top[supervised][:, place]] for place in range(3))
    # Of the sums over all triples and 12 columns, before the division by a singular value; singular values that are
    # close to each other turn their vectors by more than rounding does.
    assert_close_to_rounding(found.abs(), expected.abs(), len(triples) * 12, multiple=16)
    assert component_table(embedding, examples, 20).shape == (3, 50, 20)
    assert not bool(component_table(embedding, examples, 20)[..., 12:].any())


def test_what_the_network_reads_of_a_triple() -> None:
    """The components of its three tokens at their places are added up; the four figures stand beside them."""
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


def test_a_lower_threshold_commits_a_superset(models: Models, sampler: TrainedSampler) -> None:
    grown = 0
    for view in views_of(models["trained"], PROMPTS, OPTIONS):
        chosen = [chosen_positions(SamplerPolicy(sampler, t), view) for t in (1.0, 0.9, 0.6, 0.3, 0.1, 0.0)]
        for higher, lower in itertools.pairwise(chosen):
            assert bool((lower | ~higher).all())
            grown += int((lower & ~higher).sum())
        assert torch.equal(chosen[-1], view.masked)
        assert bool(chosen[0][view.masked.any(1)].any(1).all())
    assert grown > 0


def test_the_highest_threshold_is_one_per_pass(models: Models, sampler: TrainedSampler) -> None:
    """A sigmoid below 1 everywhere leaves the most confident position alone."""
    unsure = TrainedSampler(SMALL, 60)
    unsure.load_state_dict(sampler.state_dict())
    torch.nn.init.constant_(unsure.leave.bias, -100.0)
    engine = CountingEngine(models["trained"])
    found = decode(engine, PROMPTS, "diffusion", OPTIONS, SamplerPolicy(unsure, 1.0))
    assert found == decode(engine, PROMPTS, "diffusion", OPTIONS, FixedNumber(1))


def test_it_decodes_rows_as_alone(models: Models, sampler: TrainedSampler) -> None:
    """Blocks of unequal sizes, so that padding stands beside text."""
    options = DecodeOptions(21, block_length=6, stop_tokens=(3, 49))
    policy = SamplerPolicy(sampler, 0.7)
    together = decode(CountingEngine(models["trained"]), PROMPTS, "diffusion", options, policy)
    alone = [decode(CountingEngine(models["trained"]), [prompt], "diffusion", options, policy) for prompt in PROMPTS]
    assert together.token_ids == [one.token_ids[0] for one in alone]
    assert together.accepted == [one.accepted[0] for one in alone]
    assert max(map(max, together.accepted)) > 1
    assert not any(MASK in tokens for tokens in together.token_ids)


def test_padding_is_not_seen(models: Models, sampler: TrainedSampler) -> None:
    seen = Observation.of(views_of(models["trained"], PROMPTS, OPTIONS)[0])
    padded = Observation(
        torch.nn.functional.pad(seen.top, (0, 0, 0, 3), value=11),
        torch.nn.functional.pad(seen.statistics, (0, 0, 0, 3), value=0.5),
        torch.nn.functional.pad(seen.real, (0, 3)),
    )
    with torch.no_grad():
        assert_close_to_rounding(sampler(padded)[:, :8], sampler(seen), SMALL.layers * 12 * SMALL.width)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds(sampler: TrainedSampler, threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold: .* is not in \[0, 1\]"):
        SamplerPolicy(sampler, threshold)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": 1e38}, {"patience": 0}]
)
def test_trainings_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SamplerTraining(**changes)


def test_it_comes_back_from_disk(models: Models, sampler: TrainedSampler, tmp_path: Path) -> None:
    engine = CountingEngine(models["trained"])
    directory = tmp_path / "model" / "trained_sampler"
    save_sampler(directory, sampler, engine, {"auc": 0.5})
    save_sampler(directory, sampler, engine, {"auc": 0.9})
    assert json.loads((directory / "sampler.json").read_text())["auc"] == 0.9
    assert sorted(path.name for path in directory.parent.rglob("*")) == [
        "sampler.json",
        "sampler.safetensors",
        "trained_sampler",
    ]
    loaded = load_sampler(directory, engine)
    seen = Observation.of(views_of(models["trained"], PROMPTS, OPTIONS)[0])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(seen), sampler.eval()(seen))


def test_a_sampler_of_an_earlier_version_loads(models: Models, tmp_path: Path) -> None:
    """Its file says nothing of what has components: each of the three tokens had its own."""
    engine = CountingEngine(models["trained"])
    old = TrainedSampler(SamplerShape(16, 1, 2, 4, components_of="token"), 60).eval()
    old.table.copy_(torch.randn(60, 4, generator=torch.Generator().manual_seed(2)))
    save_sampler(tmp_path / "old", old, engine, {})
    path = tmp_path / "old" / "sampler.json"
    description = json.loads(path.read_text())
    assert description.pop("components_of") == "token"
    path.write_text(json.dumps(description))
    loaded = load_sampler(tmp_path / "old", engine).eval()
    assert loaded.shape == old.shape
    seen = Observation.of(views_of(models["trained"], PROMPTS, OPTIONS)[0])
    read: list[Tensor] = []
    loaded.enter.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        assert torch.equal(loaded(seen), old(seen))
    assert torch.equal(read[0][0, 1, :12], torch.cat([old.table[token] for token in seen.top[0, 1]]))


def test_a_missing_a_damaged_and_a_foreign_sampler_are_refused(
    models: Models, sampler: TrainedSampler, tmp_path: Path
) -> None:
    engine = CountingEngine(models["trained"])
    with pytest.raises(UserError, match=r"holds no trained sampler .*nld-sampler trains one"):
        require_sampler(tmp_path / "trained_sampler")
    save_sampler(tmp_path / "whole", sampler, engine, {})
    for other in (models["random"], random_model(vocab_size=70)):
        with pytest.raises(UserError, match="trained for the weights of another model"):
            load_sampler(tmp_path / "whole", CountingEngine(other))
    settings = json.loads((tmp_path / "whole" / "sampler.json").read_text())
    huge = [
        ("sampler.json", json.dumps({**settings, **sizes}).encode())
        for sizes in ({"layers": 10**9}, {"width": 12 * 10**12}, {"components": 10**9}, {"vocabulary_size": 10**15})
    ]
    damages = [("sampler.safetensors", b"short"), ("sampler.json", b"{}"), ("sampler.json", b"["), *huge]
    for name, content in damages:
        damaged = shutil.copytree(tmp_path / "whole", tmp_path / "damaged", dirs_exist_ok=True)
        (damaged / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged: cannot be read") as error:
            load_sampler(damaged, engine)
        assert "\n" not in str(error.value)


def test_a_sampler_with_nan_is_refused(models: Models, sampler: TrainedSampler, tmp_path: Path) -> None:
    engine, poisoned = CountingEngine(models["trained"]), deepcopy(sampler)
    next(poisoned.parameters()).data.view(-1)[0] = torch.nan
    save_sampler(tmp_path / "sampler", poisoned, engine, {})
    with pytest.raises(UserError, match="contains NaN or infinity; run nld-sampler again"):
        load_sampler(tmp_path / "sampler", engine)


def test_a_sampler_that_diverges_is_one_line(models: Models, examples: tuple[Examples, Examples]) -> None:
    table = component_table(embedding_of(CountingEngine(models["trained"])), examples[0], SMALL.components)
    table[..., 0] = torch.inf
    with pytest.raises(UserError, match=r"--learning-rate 0.003: the loss or the weights .* no longer finite"):
        train_sampler(SMALL, table, examples[0], SamplerTraining(steps=3, batch_size=64, learning_rate=3e-3))


def test_a_fingerprint_survives_bf16_and_nothing_else(models: Models) -> None:
    model = random_model(seed=8)
    found = fingerprint(CountingEngine(model))
    assert fingerprint(CountingEngine(random_model(seed=9))) != found
    with torch.no_grad():
        weight = model.encoder.embed_tokens.weight
        weight.copy_(weight.bfloat16().float())
        assert fingerprint(CountingEngine(model)) == found
        weight[30, 0] += 0.1
        assert fingerprint(CountingEngine(model)) != found
