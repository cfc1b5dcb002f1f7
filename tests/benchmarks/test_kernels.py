"""FlexAttention with each of our masks, compiled for an H100 on this machine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
from forked import run_forked

from benchmarks import tables

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        find_spec("triton") is None, reason="needs Triton, which CUDA builds of torch bring; else pip install triton"
    ),
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In a process of its own, since torch's compiler remembers which device it has found."""
    folder = tmp_path_factory.mktemp("kernels")
    done = run_forked(["-m", "benchmarks.kernels", "--results", str(folder)], timeout=400)
    assert done.status == 0, done.output[-8000:]
    print(done.output)
    print(tables.TABLES["kernels"](folder))
    found: dict[str, Any] = json.loads((folder / "kernels.json").read_text())["figures"]
    return found


def test_every_mask_compiles_forward_and_backward(figures: dict[str, Any]) -> None:
    from benchmarks.kernels import MASKS

    assert figures["masks"].keys() == MASKS.keys()
    for mask, kernels in figures["masks"].items():
        assert ["BLOCK_M1" in kernel["tiles"] for kernel in kernels] == [False, True], mask
        assert all(kernel["cubin_bytes"] for kernel in kernels), mask


def test_kernels_fit_an_h100(figures: dict[str, Any]) -> None:
    from benchmarks.kernels import SPILLED_BYTES

    for mask, kernels in figures["masks"].items():
        for kernel, spilled in zip(kernels, (0, SPILLED_BYTES), strict=True):
            assert kernel["shared_bytes"] <= figures["shared_limit"], mask
            assert kernel["spilled_bytes"] <= spilled, mask
            assert not kernel["serialized"], mask
            # 65,536 registers of a multiprocessor: at least one block of threads has to fit.
            assert kernel["registers"] * 32 * kernel["warps"] <= 65536, mask
