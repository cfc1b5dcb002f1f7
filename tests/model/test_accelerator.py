"""Settings for CUDA: refused where they cannot be, passed on to Megatron where they can; compiled layers on the CPU."""

from __future__ import annotations

import pytest
import torch
from oracle import pair, tiny_config

from nld_train.errors import UserError
from nld_train.model.accelerator import accelerator_settings
from nld_train.model.build import transformer_config
from nld_train.training.optimizer import build_optimizer

pytestmark = pytest.mark.usefixtures("groups")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"execution__fp8": "hybrid"}, "execution.fp8=hybrid"), ({"parallel__overlap_tensor": True}, "parallel.overlap")],
)
def test_what_needs_transformer_engine_is_refused_without_it(changes: dict[str, object], setting: str) -> None:
    with pytest.raises(UserError, match=f"^{setting}.*needs Transformer Engine's layers"):
        transformer_config(tiny_config(**changes), CPU)


def test_fp8_and_overlap_reach_megatron() -> None:
    config = tiny_config(execution__fp8="hybrid", execution__fp8_recipe="delayed", parallel__overlap_tensor=True)
    megatron = transformer_config(tiny_config(), CPU)
    found = accelerator_settings(config, "transformer_engine")
    assert all(hasattr(megatron, name) for name in found)
    assert found == {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        "tp_comm_overlap": True,
    }
    assert accelerator_settings(tiny_config(), "local") == {}


def test_a_precision_aware_optimizer_is_refused_without_cuda() -> None:
    config = tiny_config(optimizer__precision_aware=True)
    with pytest.raises(UserError, match=r"^optimizer\.precision_aware=true: needs CUDA"):
        build_optimizer(config, config.stages["joint"], [], torch.float32)


def test_compiled_layers_compute_the_same() -> None:
    """Every norm and MLP really goes through the compiler; names of weights stay as they are."""
    torch._dynamo.reset()
    found = []
    for compile_mode in ("none", "default"):
        config = tiny_config(execution__compile=compile_mode, model__num_hidden_layers=1)
        ours, _ = pair(config)
        layer, names = ours.decoder.layers[0], set(ours.state_dict())
        hidden = torch.randn(8, 1, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
        output, _bias = layer.mlp(layer.pre_mlp_layernorm(hidden))
        output.square().sum().backward()
        assert (layer.mlp._compiled_call_impl is not None) == (compile_mode == "default")
        found.append((output, hidden.grad, layer.mlp.linear_fc1.weight.grad, names))
    assert found[0][3] == found[1][3]
    for plain, compiled in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
