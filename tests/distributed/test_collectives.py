"""Collectives refuse, on gloo too, what NCCL would refuse; and all of ours go through the functions that do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nld_train import collectives

ROOT = Path(__file__).parents[2]
# torch's collectives on tensors; those on objects send bytes.
DIRECT = re.compile(
    r"\b(?:dist|distributed)\.(?:all_reduce|reduce|all_gather|all_gather_into_tensor|gather|scatter|broadcast|send|recv"
    r"|isend|irecv|reduce_scatter|reduce_scatter_tensor|all_to_all|all_to_all_single|batch_isend_irecv)\("
)
CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "all_reduce": collectives.all_reduce,
    "all_gather": collectives.all_gather,
    "broadcast": lambda tensor: collectives.broadcast(tensor, 0),
    "send": lambda tensor: collectives.send(tensor, 0),
    "receive": lambda tensor: collectives.receive(tensor, 0),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("groups")
def test_a_tensor_that_is_not_contiguous_is_refused(name: str) -> None:
    with pytest.raises(AssertionError, match=r"shape \[3, 2\] and strides \[1, 3\] is not contiguous"):
        CALLS[name](torch.zeros(2, 3).T)


@pytest.mark.usefixtures("groups")
def test_contiguous_ones_arrive() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    collectives.all_reduce(tensor)
    collectives.broadcast(tensor, 0)
    (part,) = collectives.all_gather(tensor)
    assert torch.equal(part, torch.arange(6.0).view(2, 3))
    assert torch.equal(tensor, part)


def test_no_other_module_calls_torchs() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for package in ("nld_train", "checkpoint_convert", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "collectives.py"
        for match in DIRECT.finditer(path.read_text())
    ]
    assert found == []
    assert len(DIRECT.findall((ROOT / "nld_train" / "collectives.py").read_text())) == 5
