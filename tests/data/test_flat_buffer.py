"""Tensors of several types in one buffer."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from nld_train.data.flat_buffer import FlatBuffer

TENSORS = {
    "odd": torch.tensor([True, False, True]),
    "strided": torch.arange(20, dtype=torch.int64).view(4, 5)[:, :-1],
    "empty": torch.empty(0, dtype=torch.int64),
    "scalar": torch.tensor(7, dtype=torch.int32),
    "double": torch.tensor([[0.1], [-2.5]], dtype=torch.float64),
    "single": torch.linspace(0, 1, 7),
    "shared": torch.tensor([[1, 2]]).expand(3, 2),
}


def same(flat: FlatBuffer, tensors: dict[str, Tensor]) -> bool:
    return all(
        flat[name].dtype == tensor.dtype and flat[name].shape == tensor.shape and torch.equal(flat[name], tensor)
        for name, tensor in tensors.items()
    )


def test_every_tensor_comes_back() -> None:
    flat = FlatBuffer.of(TENSORS)
    assert same(flat, TENSORS)
    assert "odd" in flat
    assert "other" not in flat
    # As it is sent from a reader process.
    assert same(pickle.loads(pickle.dumps(flat)), TENSORS)


def test_tensors_are_views_of_one_buffer_and_copies_of_what_they_were_made_of() -> None:
    source = torch.arange(3)
    flat = FlatBuffer.of({"first": torch.zeros(1, dtype=torch.bool), "second": source})
    source[0] = 9
    assert flat["second"].tolist() == [0, 1, 2]
    flat["second"][1] = 5
    assert flat["second"].tolist() == [0, 5, 2]
    assert {flat[name].untyped_storage().data_ptr() for name in ("first", "second")} == {flat.buffer.data_ptr()}


def test_on_a_cpu_nothing_is_copied() -> None:
    flat = FlatBuffer.of(TENSORS)
    assert flat.to(torch.device("cpu")) is flat


def test_one_copy_to_a_device() -> None:
    """The meta device has shapes and types alone; one tensor arrives there."""
    flat = FlatBuffer.of(TENSORS)
    pinned = pytest.MonkeyPatch()
    with pinned.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        there = flat.to(torch.device("meta"))
    assert there.buffer.device.type == "meta"
    assert [there[name].shape for name in TENSORS] == [tensor.shape for tensor in TENSORS.values()]
