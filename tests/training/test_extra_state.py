"""Loading into layers that have an `_extra_state`, of which a checkpoint knows nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import composed, newest_checkpoint, saved_tensors

from nld_train.model import spec
from nld_train.model.build import build_model, transformer_config
from nld_train.model.initialize import shards
from nld_train.model.ministral3 import Ministral3Model
from nld_train.training.checkpoint.load import load
from nld_train.training.checkpoint.scaling_state import fill, split_state


class StatefulNorm(spec.RMSNorm):
    """As each of Transformer Engine's modules: torch's two methods, and no hook that fills in a missing entry."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        raise AssertionError("there was nothing to load")


@pytest.fixture
def make_model(
    groups: torch.device, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Ministral3Model]:
    monkeypatch.setattr(spec, "RMSNorm", StatefulNorm)
    config = composed(*settings)
    return lambda: build_model(config, transformer_config(config, groups), groups)[0]


def test_every_weight_is_loaded(make_model: Callable[[], Ministral3Model], whole: Path) -> None:
    model = make_model()
    assert any(name.endswith("layernorm._extra_state") for name in model.state_dict())
    load(newest_checkpoint(whole), [model], None)
    saved, seen = saved_tensors(newest_checkpoint(whole)), 0
    for part in shards(split_state(model)[0]):
        assert part.data is not None
        layer = part.global_offset[: part.prepend_axis_num]
        offset = part.global_offset[part.prepend_axis_num :]
        box = tuple(slice(start, start + size) for start, size in zip(offset, part.data.shape, strict=True))
        assert torch.equal(part.data, saved[part.key][layer][box]), part.key
        seen += 1
    assert seen >= 4 * model.config.num_layers


def test_a_weight_that_is_missing_or_too_many_is_noticed(make_model: Callable[[], Ministral3Model]) -> None:
    model = make_model()
    weights = {name: weight for name, weight in model.state_dict().items() if not name.endswith("_extra_state")}
    fill(model, weights, {})
    head = weights.pop("output_layer.weight")
    with pytest.raises(AssertionError, match=r"without weights .*output_layer\.weight"):
        fill(model, weights, {})
    with pytest.raises(AssertionError, match=r"does not have: .*other\.weight"):
        fill(model, {**weights, "output_layer.weight": head, "other.weight": head}, {})
