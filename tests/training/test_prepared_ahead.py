"""When the inputs of a pass are prepared, how long they are kept, and what the host reads at the end of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY_MODEL, composed, data_overrides, write_token_set

from nld_train.config.plan import stage_plans
from nld_train.config.schema import Config
from nld_train.data.batches import batches
from nld_train.data.order import stage_orders
from nld_train.data.samples import training_samples
from nld_train.model import streams
from nld_train.model.build import build_model, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop import forward_backward
from nld_train.training.loop.optimizer import build_optimizer, unwrap, wrap_model
from nld_train.training.loop.update import gradient_square
from nld_train.training.stages.kind import StageTrainer

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("groups")


class Trainee:
    """A stage over a tiny model, with four micro-batches in a step."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        prefix = write_token_set(folder / "tokens", seed=3)
        self.config: Config = composed(*TINY_MODEL, *data_overrides(prefix), "run.stages=[joint]", *overrides)
        (plan,) = stage_plans(self.config)
        megatron = transformer_config(self.config, CPU)
        chunks = build_model(self.config, megatron, CPU)
        initialize(chunks, self.config.model, 1)
        rotary = RotaryEmbedding(self.config.model, CPU)
        self.trainer: StageTrainer = plan.kind.make_trainer(self.config, plan, rotary, torch.float32, CPU)
        self.model = wrap_model(self.config, megatron, chunks)
        self.optimizer: Any = build_optimizer(self.config, plan.stage, self.model, torch.float32)
        read = batches(
            training_samples(self.config, plan.name, stage_orders(self.config, [plan])[plan.name]),
            first_step=0,
            last_step=1,
            global_size=self.config.batch.global_size,
            micro_size=self.config.batch.micro_size,
            collate=self.trainer.collate,
        )
        self.batches = next(iter(read))

    def step(self) -> dict[str, Any]:
        return self.trainer.step(self.model, self.optimizer, self.batches)


def test_the_next_micro_batch_is_prepared_behind_the_forward_pass_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of them before the first; and contexts whose backward pass is over are dropped."""
    streams.clear()  # those of other tests
    trainee, events, alive = Trainee(tmp_path), [], []
    prepare, (chunk,) = forward_backward.prepare, trainee.model
    forward = unwrap(chunk).forward

    def prepared(*given: Any) -> Any:
        events.append("prepare")
        return prepare(*given)

    def passed(*given: Any, **named: Any) -> Any:
        events.append("forward")
        alive.append(len(streams._contexts))
        output = forward(*given, **named)
        output.register_hook(lambda _: events.append("backward"))
        return output

    monkeypatch.setattr(forward_backward, "prepare", prepared)
    monkeypatch.setattr(unwrap(chunk), "forward", passed)
    trainee.step()
    later = ["backward", "forward", "prepare"]
    assert events == ["prepare", "forward", "prepare", *later, *later, "backward", "forward", "backward"]
    assert alive == [1, 1, 1, 1]
    assert not streams._contexts


def test_the_norm_is_that_of_megatron_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nld_train.training.loop import update

    trainee, squares = Trainee(tmp_path, "optimizer.clip_grad=0.5"), []

    def measured(optimizer: Any, device: torch.device) -> torch.Tensor:
        squares.append((gradient_square(optimizer, device), optimizer.get_grad_norm()))
        return squares[-1][0]

    monkeypatch.setattr(update, "gradient_square", measured)
    norm = trainee.step()["grad_norm"]
    ((square, megatron),) = squares
    assert norm == float(square) ** 0.5 == megatron > 0.5
    clipped = [parameter.grad.square().sum() for parameter in trainee.optimizer.get_parameters()]
    assert float(torch.stack(clipped).sum().sqrt()) == pytest.approx(0.5, rel=1e-5)
