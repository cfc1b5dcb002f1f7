"""The trained sampler: what it commits, its files, and whose it is."""

from __future__ import annotations

import itertools
import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from sampler_cases import OPTIONS, PROMPTS, SMALL, Models, views_of
from tiny_models import MASK, CountingEngine, random_model
from tolerance import assert_close_to_rounding
from torch import Tensor

from nld_train.decoding import DecodeOptions, FixedNumber
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
from nld_train.evaluation.sampler_data import Examples
from nld_train.evaluation.sampler_training import (
    SamplerTraining,
    component_table,
    train_sampler,
)


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
