"""A new noise schedule is one file and one entry: configuration, noise, counts, weights and the joint loss follow."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from oracle import pair, tiny_config
from quadratic_schedule import QuadraticSchedule
from test_joint_loss import ALPHA, AVERAGINGS, random_samples, through_loops, through_the_schedule

from nld_train.config.compose import compose_config
from nld_train.config.counts import step_flops
from nld_train.config.validate import validate
from nld_train.errors import UserError
from nld_train.masking.noise import draw_noise
from nld_train.masking.schedule import SCHEDULES, noise_schedule
from nld_train.model import streams
from nld_train.training.stages.joint import JOINT

pytestmark = pytest.mark.usefixtures("groups")
EPSILON = 0.01
DRY = ["run.dry=true", "diffusion.schedule=quadratic"]


@pytest.fixture(autouse=True)
def quadratic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SCHEDULES, "quadratic", QuadraticSchedule)
    yield
    streams.clear()


def test_the_configuration_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    validate(compose_config(DRY), 1)
    monkeypatch.delitem(SCHEDULES, "quadratic")
    with pytest.raises(UserError, match=r"^diffusion.schedule=quadratic: must be one of linear$"):
        validate(compose_config(DRY), 1)


def test_noise_is_drawn_with_its_probability() -> None:
    settings = tiny_config(diffusion__schedule="quadratic", diffusion__epsilon=EPSILON).diffusion
    maskable, blocks = np.ones(50, dtype=bool), np.zeros(50, dtype=np.int64)
    fixed = draw_noise(settings, 1, "joint", 0, 1, maskable, blocks, level=0.3)
    assert fixed.probability == pytest.approx(np.full(50, 0.99 * 0.09 + 0.01), rel=1e-6)
    drawn = [draw_noise(settings, 1, "joint", index, 1, maskable, blocks) for index in range(3000)]
    mean = noise_schedule(settings).mean_probability
    # The standard deviation of t^2 is sqrt(1/5 - 1/9).
    spread = math.sqrt(4 / 45 / len(drawn))
    assert np.mean([noise.masked.mean() for noise in drawn]) == pytest.approx(mean, abs=5 * spread)


def test_its_mean_is_counted() -> None:
    quadratic, linear = (
        compose_config(["run.dry=true", f"diffusion.schedule={name}"]) for name in ("quadratic", "linear")
    )
    epsilon = quadratic.diffusion.epsilon
    assert JOINT.head_rows(300, quadratic.diffusion) == pytest.approx(300 * (1 + (1 - epsilon) / 3 + epsilon))
    fewer = quadratic.batch.sequence_length * (1 - epsilon) / 6  # rows of logits: 1/3 is masked instead of 1/2
    products = 6 * fewer * quadratic.model.vocab_size * quadratic.model.hidden_size * quadratic.batch.global_size
    assert step_flops(linear, linear.stages["joint"]) - step_flops(
        quadratic, quadratic.stages["joint"]
    ) == pytest.approx(products)


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_the_joint_loss_has_its_weights(averaging: str) -> None:
    config = tiny_config(
        diffusion__schedule="quadratic", diffusion__epsilon=EPSILON, diffusion__block_size=4, model__num_hidden_layers=1
    )
    ours, theirs = pair(config)
    samples = random_samples(0, 4, 11)
    samples["probability"] = samples["probability"].clamp(min=0.05)
    found = through_the_schedule(config, ours, samples, averaging, ALPHA, micro_size=2)
    p = samples["probability"].double()
    # The plain loops divide by what they are given: the inverse of p'(t) / p(t) = 2 (1 - epsilon) t / p(t).
    level = ((p - EPSILON) / (1 - EPSILON)).sqrt()
    inverse = {**samples, "probability": p / (2 * (1 - EPSILON) * level)}
    expected = through_loops(config, theirs, inverse, averaging, ALPHA)
    assert found == pytest.approx(tuple(float(torch.as_tensor(term).detach()) for term in expected), rel=1e-5)
