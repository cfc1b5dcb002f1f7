"""The arguments of the kernel of packed documents, by version of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from nld_train.model.attention import causal


def flag(query: Any, key: Any, value: Any, *more: Any, is_causal: bool = False) -> None: ...


def window(*inputs: Any, window_size: tuple[int, int] = (-1, -1)) -> None: ...


def window_and_groups(*inputs: Any, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False) -> None: ...


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    causal.varlen_arguments.cache_clear()
    yield
    causal.varlen_arguments.cache_clear()


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (flag, {"is_causal": True}),
        (window, {"window_size": (-1, 0)}),
        (window_and_groups, {"window_size": (-1, 0), "enable_gqa": True}),
    ],
)
def test_the_kernel_is_told_what_it_knows(
    kernel: Callable[..., None], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    assert causal.varlen_arguments() == expected


def test_this_torch_is_told_to_look_back_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents one after another, and borders in the kernel's form."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def kernel(*inputs: Any, **named: Any) -> torch.Tensor:
        calls.append((inputs, named))
        return inputs[0]

    expected = causal.varlen_arguments()
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    documents = causal.Documents.of(torch.tensor([[0, 0, 1, 1, 1, 1], [0] * 6]), torch.device("cpu"))
    assert torch.equal(causal._attend_varlen(query, key, key, documents), query)
    ((queries, keys, _, ends, _, longest, _), named) = calls[0]
    assert (queries.shape, keys.shape, ends.tolist(), longest) == ((12, 4, 8), (12, 2, 8), [0, 2, 6, 12], 6)
    assert named == expected
    assert expected.items() <= {"window_size": (-1, 0), "is_causal": True, "enable_gqa": True}.items()
