"""Decode cycles over fixed buffers, eager and as recorded graphs, give what cycles called directly give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tape import Tape, Tapes, address
from tiny_models import CountingEngine, random_model
from torch import Tensor

from nld_train.decoding import DecodeOptions, DecodeResult, Engine, Entropy, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.engines import cycles
from nld_train.decoding.engines.cycles import DirectCycles, FixedCycles, rounded_entries, rounded_rows
from nld_train.decoding.engines.megatron_engine import MegatronEngine

PROMPTS = [[7, 9, 11, 13, 15], [40], [8, 21, 30, 30, 12, 51, 6, 44, 19], [10, 11, 12], [30] * 14]
MODES = ("ar", "diffusion", "linear", "quadratic")
OPTIONS = {
    "greedy": DecodeOptions(19, block_length=4, stop_tokens=(33,)),
    "sampled": DecodeOptions(19, block_length=3, temperature=0.9, top_k=30, top_p=0.95, seeds=5, stop_tokens=(33, 50)),
}


@pytest.fixture(scope="module", params=["megatron", "sdpa", pytest.param("eager", marks=pytest.mark.long)])
def engine(
    request: pytest.FixtureRequest, open_engine: Callable[[str], AbstractContextManager[Engine]]
) -> Iterator[Engine]:
    with open_engine(request.param) as opened:
        yield opened


@pytest.fixture(autouse=True)
def narrow_cache_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that texts of these lengths use several of them."""
    monkeypatch.setattr(cycles, "_ENTRIES", 8)


def continued(
    engine: Engine, how: cycles.Cycles, mode: str, options: DecodeOptions, slots: int | None = None
) -> DecodeResult:
    engine.allocate(0, 0)
    engine.cycles = how
    policy = (Entropy(1.0) if options.temperature else Threshold(0.2)) if mode == "diffusion" else None
    try:
        return decode(engine, PROMPTS, mode, options, policy, batch_size=slots)
    finally:
        engine.allocate(0, 0)
        engine.cycles = DirectCycles()


def fixed(tapes: Tapes | None = None) -> FixedCycles:
    return FixedCycles(torch.device("cpu"), tapes)


@pytest.mark.parametrize(
    "slots", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(None, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", [pytest.param("greedy", marks=pytest.mark.long), "sampled"])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_texts_directly_over_fixed_buffers_and_as_graphs(
    engine: Engine, mode: str, name: str, slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are refilled, sequences end one after another, and the part of the cache that is read grows.

    A graph reads nothing but what stays and what the next cycle fills.
    """
    expected = continued(engine, DirectCycles(), mode, OPTIONS[name], slots)
    assert expected.graph_forwards == 0
    off = continued(engine, fixed(Tapes()), mode, replace(OPTIONS[name], cuda_graphs="off"), slots)
    assert (off, off.graph_forwards) == (expected, 0)
    how = fixed(Tapes())
    unknown: list[dict[int, tuple[int, ...]]] = []
    monkeypatch.setattr(how.graphs, "capture", watched(engine, how, unknown))
    found = continued(engine, how, mode, OPTIONS[name], slots)
    assert found == expected
    assert 0.2 * found.forwards < found.graph_forwards < found.forwards
    assert unknown == [{}] * len(how.graphs.tapes)


def watched(engine: Engine, how: FixedCycles, unknown: list[dict[int, tuple[int, ...]]]) -> Callable[[Any], Tape]:
    """Capturing that notes the shapes of tensors that a graph reads and that nothing keeps or fills."""
    capture = how.graphs.capture

    def capturing(function: Callable[[], None]) -> Tape:
        tape = capture(function)
        places = known(engine, how)
        # Numbers that stand in the code become tensors without dimensions; an empty tensor has nothing to read.
        tensors = tape.outside.items()
        outside = {where: tuple(tensor.shape) for where, tensor in tensors if tensor.dim() and tensor.numel()}
        unknown.append({where: shape for where, shape in outside.items() if where not in places})
        return tape

    return capturing


def test_an_ensemble(engine: Engine) -> None:
    options = replace(OPTIONS["sampled"], ar_weight=0.6)
    found = continued(engine, fixed(Tapes()), "quadratic", options)
    assert found == continued(engine, DirectCycles(), "quadratic", options)
    assert found.graph_forwards > 0


def test_drafts_of_an_adapter(adapter: Path) -> None:
    """Its forwards are other graphs than those without it."""
    model = random_model()
    model.load_drafter(adapter)
    engine, tapes = CountingEngine(model), Tapes()
    engine.cycles = fixed(tapes)
    for name, options in OPTIONS.items():
        for with_adapter in (False, True, False):
            options = replace(options, adapter=with_adapter)
            expected = decode(CountingEngine(model), PROMPTS, "linear", options)
            found = decode(engine, PROMPTS, "linear", options)
            assert found == expected, (name, with_adapter)
            assert found.graph_forwards > 0


def known(engine: Engine, how: FixedCycles) -> set[int]:
    """Addresses that stay: weights, buffers, the cache, and the buffers of the cycles."""
    modules = engine.chunks if isinstance(engine, MegatronEngine) else [engine.encoder, engine.head]
    found: list[Tensor] = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    found += [tensor for layer in engine._cache._layers.values() for tensor in layer]
    found += [*how._buffers.values(), *(packing._device for packing in how._packings.values())]
    found += [engine.rotary.frequencies] if isinstance(engine, MegatronEngine) else []
    return {address(tensor) for tensor in found}


def test_graphs_outlive_a_call_and_not_their_cache(engine: Engine) -> None:
    tapes = Tapes()
    engine.allocate(0, 0)
    engine.cycles = fixed(tapes)
    texts, captured = [], []
    for prompts in (PROMPTS, PROMPTS[::-1], [*PROMPTS, [4] * 33]):
        texts.append(decode(engine, prompts, "linear", OPTIONS["greedy"], batch_size=2).token_ids)
        captured.append(len(tapes.tapes))
    engine.allocate(0, 0)
    engine.cycles = DirectCycles()
    assert texts[0] == texts[1][::-1] == texts[2][:-1]
    first, again, larger = captured
    assert again < 2 * first
    assert larger > again


def test_what_cannot_be_captured_runs_eagerly_and_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = continued(engine, DirectCycles(), "linear", OPTIONS["sampled"])
    plain = CountingEngine.forward if isinstance(engine, CountingEngine) else MegatronEngine.forward

    def reading(self: Engine, step: object) -> Tensor:
        logits = plain(self, step)
        assert not bool(logits.isnan().any())
        return logits

    monkeypatch.setattr(type(engine), "forward", reading)
    with pytest.warns(UserWarning, match="without CUDA graphs: capturing one failed .*not permitted"):
        found = continued(engine, fixed(Tapes()), "linear", OPTIONS["sampled"])
    assert (found, found.graph_forwards) == (expected, 0)
    with (
        pytest.raises(ValueError, match=r"^cuda_graphs: .*capturing one failed"),
        warnings.catch_warnings(action="ignore"),
    ):
        continued(engine, fixed(Tapes()), "linear", replace(OPTIONS["sampled"], cuda_graphs="on"))


def test_graphs_that_are_required_where_there_are_none(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"^cuda_graphs: .*CUDA device"):
        continued(engine, DirectCycles(), "ar", replace(OPTIONS["greedy"], cuda_graphs="on"))
    with pytest.raises(ValueError, match=r"^cuda_graphs: .*several processes"):
        continued(engine, fixed(), "ar", replace(OPTIONS["greedy"], cuda_graphs="on"))


def test_few_graphs_are_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "MOST_GRAPHS", 2)
    expected = continued(engine, DirectCycles(), "linear", OPTIONS["greedy"], 2)
    how = fixed(Tapes())
    kept: list[int] = []
    monkeypatch.setattr(how, "reset", lambda: kept.append(len(how._captured)))
    assert continued(engine, how, "linear", OPTIONS["greedy"], 2) == expected
    assert kept[-1] == 2
    assert len(how.graphs.tapes) > 2


def test_sizes_are_rounded_up_and_never_past_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "_ENTRIES", 256)
    assert [rounded_entries(entries) for entries in (0, 1, 256, 257, 4097, 33000)] == [0, 256, 256, 512, 4608, 36864]
    sizes = [rounded_entries(entries) for entries in range(1, 70000)]
    assert all(entries <= size < entries + max(256, entries / 7) for entries, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 64
    assert [rounded_rows(rows, 6) for rows in range(1, 7)] == [1, 2, 4, 4, 6, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_graphs_and_eager_cycles_on_a_gpu(mode: str, name: str) -> None:
    with torch.no_grad():
        engine = CountingEngine(random_model().cuda())
        policy = Threshold(0.2) if mode == "diffusion" else None
        found = {
            how: decode(engine, PROMPTS * 3, mode, replace(OPTIONS[name], cuda_graphs=how), policy, batch_size=4)
            for how in ("off", "on")
        }
    assert found["on"] == found["off"]
    assert found["on"].graph_forwards > 0.5 * found["on"].forwards
