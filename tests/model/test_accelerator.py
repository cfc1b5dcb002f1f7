"""Settings for CUDA: refused where they cannot be, passed on to Megatron where they can; compiled layers on the CPU."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.optimizer import OptimizerConfig
from oracle import pair, tiny_config
from tolerance import assert_close_to_rounding, gradient_additions
from torch._dynamo.testing import CompileCounter

from nld_train.errors import UserError
from nld_train.model.accelerator import accelerator_settings
from nld_train.model.build import transformer_config
from nld_train.model.kernels import kernels_in_words
from nld_train.training.loop import parallel
from nld_train.training.loop.optimizer import _state_settings, build_optimizer

pytestmark = pytest.mark.usefixtures("groups")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"execution__fp8": "hybrid"}, "execution.fp8=hybrid"), ({"parallel__overlap_tensor": True}, "parallel.overlap")],
)
def test_what_needs_transformer_engine_is_refused_without_it(changes: dict[str, object], setting: str) -> None:
    with pytest.raises(UserError, match=f"^{setting}.*needs Transformer Engine's layers"):
        transformer_config(tiny_config(**changes), CPU)


def test_the_kernels_of_a_run_in_words() -> None:
    """The first lines of a run on CUDA have them."""
    config, cuda = tiny_config(execution__layers="local"), torch.device("cuda")
    assert kernels_in_words(config, CPU) == (
        "local layers, chunked attention, plain rotary embedding, chunked head, "
        "weight gradients added after the products"
    )
    assert kernels_in_words(config, cuda) == (
        "local layers, flex attention, compiled rotary embedding, chunked head, weight gradients added in the products"
    )
    compiled = tiny_config(execution__layers="local", execution__compile="default", execution__head="fused")
    assert kernels_in_words(compiled, cuda).endswith("fused head, weight gradients added after the products")


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


@pytest.mark.long
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
        assert_close_to_rounding(compiled, plain, gradient_additions(config.model, 0, rows=8))


@pytest.mark.long  # compiles nine times
# Torch's own patch: pytest's deletes the setting afterwards, which then is missing for every later test.
@torch._dynamo.config.patch(recompile_limit=8)
def test_layers_share_what_is_compiled_for_more_lengths_than_torch_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has the lengths of its stages, with and without gradients, and those of decoding."""
    torch._dynamo.reset()
    counter, compile_module = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, dynamic, mode: compile_module(module, backend=counter, dynamic=dynamic),
    )
    ours, _ = pair(tiny_config(execution__compile="default", model__num_hidden_layers=2))
    counts = []
    for length in [8, *range(9, 15), 8]:
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                hidden = torch.randn(length, 1, 40, requires_grad=gradients)
                for layer in ours.decoder.layers:
                    hidden, _bias = layer.mlp(layer.pre_mlp_layernorm(hidden))
            counts.append(counter.frame_count)
    new = [after - before for before, after in pairwise([0, *counts])]
    assert all(new[:-2]), "each length is compiled, with and without gradients"
    assert len(set(new[2:-2])) == 1, "for both layers together, and as often for each"
    assert new[-2:] == [0, 0], "what was compiled is still there"


def test_leaving_the_groups_destroys_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the groups go, over which they were made."""
    seen: list[str] = []
    monkeypatch.setattr(parallel, "destroy_overlap_buffers", lambda: seen.append("buffers"))
    monkeypatch.setattr(parallel_state, "destroy_model_parallel", lambda: seen.append("groups"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: seen.append("processes"))
    parallel._leave()
    assert seen == ["buffers", "groups", "processes"]


def test_the_optimizer_keeps_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron would save remainders of 16 bits as if they were weights."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = tiny_config(optimizer__precision_aware=True, optimizer__cpu_offload=0.5)
    settings = _state_settings(config)
    known = {field.name for field in dataclasses.fields(OptimizerConfig)}
    assert set(settings) <= known
    assert settings["use_precision_aware_optimizer"] is True
    assert settings["store_param_remainders"] is False
