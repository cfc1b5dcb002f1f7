"""What a start loads, and what it does not."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import run_command

PROGRAM = """
import sys, torch
from nld_train.library_imports import import_megatron
compiling = torch.compile
import_megatron()
assert torch.compile is compiling
import {module}
from megatron.core.fusions.fused_bias_swiglu import swiglu
x = torch.tensor([[1.0, 2.0]])
assert torch.allclose(swiglu(x), torch.nn.functional.silu(x[:, :1]) * x[:, 1:])
print("megatron.core" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Megatron's functions are compiled")
@pytest.mark.parametrize(
    "module", ["nld_train.training.run", "nld_train.decoding.megatron_engine", "nld_train.data.prepare"]
)
def test_no_compiler_is_loaded_without_a_gpu(module: str) -> None:
    done = run_command(["-W", "ignore", "-c", PROGRAM.format(module=module)], timeout=120)
    assert done.output.strip().splitlines()[-1] == "True False", done.output
