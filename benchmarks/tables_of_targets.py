"""The first table of `docs/performance.md`: which targets are met."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.data import PREPARATION_TARGET
from benchmarks.forwards import TARGETS as SPEED_UPS
from benchmarks.mfu import FP8, FP8_TARGET, TARGET
from benchmarks.results_table import NOT_MEASURED, Cells, Result, device_of, load, markdown, outcome
from benchmarks.tables_of_steps import utilisations

_SHAPES = ("3b", "8b", "14b")
_BACKENDS = ("flex", "split", "decomposed")
# The planner's memory is within this of the peak.
_MEMORY = 0.1


def targets(results: Path) -> str:
    """Each target with its figure; the results themselves have more of them."""
    columns = ("target", "wanted", "measured", "", "on")
    rows = [*_steps(results), *_chip(results), *_attention(results), *_baseline(results), *_decoding(results)]
    return markdown(columns, [*rows, *_memory(results), *_data(results)])


def _row(name: str, wanted: str, result: Result | None, measured: str, met: bool) -> Cells:
    if result is None:
        return (name, wanted, NOT_MEASURED, "", "")
    return (name, wanted, measured, outcome(met), device_of(result))


def _steps(results: Path) -> Iterator[Cells]:
    for shape in _SHAPES:
        result = load(results, f"step_{shape}", on_gpu=True)
        found = {"of_limit": 0.0, "target": 1.1} if result is None else result["figures"]
        ratio, target = found["of_limit"], found["target"]
        wanted = f"at most {target:.2f} of the counted limit"
        yield _row(f"joint over AR step, {shape}", wanted, result, f"{ratio:.2f}", ratio <= target)


def _chip(results: Path) -> Iterator[Cells]:
    """The best kind of layers counts in bf16."""
    found = utilisations(results)
    result = load(results, "mfu", on_gpu=True) or load(results, "step_8b", on_gpu=True)
    for step in ("ar", "joint"):
        shares = [row["utilisation"][step] for kind, row in found.items() if kind != FP8 and "utilisation" in row]
        best = max(shares, default=0.0)
        name = f"utilisation in bf16, {'AR' if step == 'ar' else step}"
        yield _row(name, f"above {TARGET:.0%}", result if shares else None, f"{best:.1%}", best > TARGET)
    tflops = found[FP8].get("tflops", {}).get("ar", 0.0)
    wanted = f"at least {FP8_TARGET:.0f} TFLOP/s"
    yield _row("AR in FP8, 8b", wanted, result if tflops else None, f"{tflops:.0f} TFLOP/s", tflops >= FP8_TARGET)


def _attention(results: Path) -> Iterator[Cells]:
    result = load(results, "attention", on_gpu=True)
    rows = {} if result is None else result["figures"]["cases"].get("whole", {}).get("rows", {})
    for backend in _BACKENDS:
        ratio = rows.get(backend, {}).get("of_limit", 0.0)
        target = 1.15 if result is None else result["figures"]["target"]
        wanted = f"at most {target:.2f} of the visible pairs' ratio"
        name = f"joint attention, {backend}"
        yield _row(name, wanted, result if backend in rows else None, f"{ratio:.2f}", ratio <= target)


def _baseline(results: Path) -> Iterator[Cells]:
    result = load(results, "baseline", on_gpu=True)
    found = {"speed_ratio": 0.0, "speed_target": 1.5, "head_memory_ratio": 0.0, "head_memory_target": 0.5}
    found |= {} if result is None else result["figures"]
    speed, share = found["speed_ratio"], found["head_memory_ratio"]
    fast, small = speed >= found["speed_target"], share <= found["head_memory_target"]
    wanted = f"at least {found['speed_target']} times"
    yield _row("joint step over the straightforward design", wanted, result, f"{speed:.2f} times", fast)
    wanted = f"at most {found['head_memory_target']}"
    yield _row("its memory of head and loss", wanted, result, f"{share:.2f}", small)


def _decoding(results: Path) -> Iterator[Cells]:
    """Of a trained model where there is one, else computed from the times of forwards."""
    result = load(results, "forwards_checkpoint", on_gpu=True) or load(results, "forwards", on_gpu=True)
    found = {} if result is None else {target["name"]: target for target in result["figures"]["targets"]}
    for name, (other, target) in SPEED_UPS.items():
        title = f"{name} over {other}"
        row = found.get(title, {"ratio": 0.0, "kind": ""})
        measured = f"{row['ratio']:.2f} times ({row['kind']})"
        yield _row(title, f"at least {target} times", result, measured, row["ratio"] >= target)


def _memory(results: Path) -> Iterator[Cells]:
    for shape in _SHAPES:
        result = load(results, f"step_{shape}", on_gpu=True)
        ratios = {} if result is None else result["figures"]["planned_over_peak"]
        measured = ", ".join(f"{'AR' if kind == 'ar' else kind} {ratio:.2f}" for kind, ratio in ratios.items())
        met = all(abs(ratio - 1) <= _MEMORY for ratio in ratios.values())
        yield _row(f"planned memory over the peak, {shape}", f"1 +- {_MEMORY}", result, measured, met)


def _data(results: Path) -> Iterator[Cells]:
    result = load(results, "data")
    prepared = {} if result is None else result["figures"]["preparation"]
    ratios = {name: ratio["processor"] for name, ratio in prepared.get("ratios", {}).items()}
    # The fastest of the others is that over which ours is least ahead.
    fastest = min(ratios, key=lambda name: ratios[name], default="")
    ratio, target = ratios.get(fastest, 0.0), prepared.get("target", PREPARATION_TARGET)
    measured = f"{ratio:.2f} times {fastest}"
    name = "nld-data prepare over the fastest public path, per core"
    yield _row(name, f"at least {target}", result, measured, ratio >= target)
    share = 0.0 if result is None else result["figures"]["loader"]["share"]
    yield _row("loader, of a step", "below 1 %", result, f"{share:.2%}", share < 0.01)
