"""Tables of `docs/performance.md`: steps and their parts. Each function has the name of its table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.mfu import KINDS, target_of, utilisation
from benchmarks.results_table import NOT_MEASURED, Cells, Result, blank, device_of, gpu_and_cpu, load, markdown

_SHAPES = ("3b", "8b", "14b")
_KINDS = ("ar", "joint")


def step(results: Path) -> str:
    """Time of a joint step over an AR step, per shape."""
    head = ("shape", "on", "layers", "AR, tokens/s", "joint, tokens/s", "joint over AR", "limit", "of limit", "target")
    rows = []
    on_cpu = (("quickstart", "step"), ("quickstart, documents of 30 tokens", "step_30"))
    for title, name, on_gpu in (*((*each, False) for each in on_cpu), *((s, f"step_{s}", True) for s in _SHAPES)):
        result = load(results, name, on_gpu)
        if result is None:
            rows.append(blank(title, len(head)))
            continue
        found = result["figures"]
        speeds = (f"{found['tokens'] / found['seconds'][kind]:,.0f}" for kind in _KINDS)
        ratios = (f"{found[key]:.2f}" for key in ("time_ratio", "limit", "of_limit", "target"))
        rows.append((title, device_of(result), str(found["layers"]), *speeds, *ratios))
    return markdown(head, rows)


def answers(results: Path) -> str:
    """Time of a step on answers over an AR step on the same conversations."""
    head = ("on", "answers", "noisy stream", "tokens/s", "over AR", "limit", "of limit", "target")
    streams = {"ar": "none", "answers": "the answers", "whole": "all tokens"}

    def rows_of(result: Result) -> Iterable[Cells]:
        found = result["figures"]
        share = f"{found['answer_tokens'] / found['clean_tokens']:.0%} of the tokens"
        for name, row in found["rows"].items():
            speed = f"{found['clean_tokens'] / row['seconds']:,.0f}"
            ratios = (f"{row[key]:.2f}" for key in ("ratio", "limit", "of_limit"))
            target = f"{found['target']:.2f}" if name == "answers" else ""
            yield device_of(result), share, streams[name], speed, *ratios, target

    return gpu_and_cpu(results, "answers", rows_of, head)


def memory(results: Path) -> str:
    """Peak memory of both steps, and the planner's count."""
    head = ("shape", "AR, GiB", "planned over AR", "joint, GiB", "planned over joint", "joint over AR", "target")
    rows = []
    for shape in _SHAPES:
        result = load(results, f"step_{shape}", on_gpu=True)
        if result is None:
            rows.append(blank(shape, len(head)))
            continue
        peaks, planned = result["figures"]["peak_bytes"], result["figures"]["planned_over_peak"]
        cells = [cell for kind in _KINDS for cell in (f"{peaks[kind] / 2**30:.1f}", f"{planned[kind]:.2f}")]
        rows.append((shape, *cells, f"{peaks['joint'] / peaks['ar']:.2f}", "planned: 0.90 to 1.10"))
    return markdown(head, rows)


def baseline(results: Path) -> str:
    """This project's step over the straightforward design."""
    head = ("on", "model", "tokens/s", "target", "head and loss, memory", "target")

    def rows_of(result: Result) -> Iterable[Cells]:
        found = result["figures"]
        model = f"{found['model']}, {found['layers']} layers"
        speed, share = f"{found['speed_ratio']:.2f} times", f"{found['head_memory_ratio']:.2f}"
        yield device_of(result), model, speed, f"{found['speed_target']}", share, f"{found['head_memory_target']}"

    return gpu_and_cpu(results, "baseline", rows_of, head)


def attention(results: Path) -> str:
    """Joint attention over the fastest causal attention."""
    head = ("on", "samples", "kernel", "milliseconds", "over fastest causal", "limit", "of limit", "target")

    def rows_of(result: Result) -> Iterable[Cells]:
        figures, on = result["figures"], device_of(result)
        for case, found in figures["cases"].items():
            samples = f"{case}, {figures['length']} tokens"
            for name, row in found["rows"].items():
                of_limit = ("", "", "")
                if "of_limit" in row:
                    of_limit = (f"{found['limit']:.2f}", f"{row['of_limit']:.2f}", f"{figures['target']}")
                yield on, samples, name, f"{1e3 * row['seconds']:.1f}", f"{row['ratio']:.2f}", *of_limit
            for name, reason in found["missing"].items():
                yield on, samples, name, reason, "", "", "", ""
            yield on, samples, "making the block mask", f"{1e3 * found['mask_seconds']:.1f}", "", "", "", ""

    return gpu_and_cpu(results, "attention", rows_of, head)


KERNEL_COLUMNS = ("mask", "pass", "tiles", "warps", "stages", "registers", "spilled, bytes", "shared memory, KiB")


def kernels(results: Path) -> str:
    """What FlexAttention's kernels use of an H100."""
    columns = (*KERNEL_COLUMNS, "compiled with")
    result = load(results, "kernels")
    if result is None:
        return markdown(columns, [blank("all", len(columns))])
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "triton"))
    return markdown(columns, [(*row, versions) for row in kernel_rows(result["figures"])])


def kernel_rows(figures: dict[str, Any]) -> Iterator[Cells]:
    """A row for each kernel, with `KERNEL_COLUMNS`."""
    for mask, compiled in figures["masks"].items():
        for kernel in compiled:
            numbers = (kernel[name] for name in ("warps", "stages", "registers", "spilled_bytes"))
            shared = f"{kernel['shared_bytes'] / 1024:.0f} of {figures['shared_limit'] >> 10}"
            yield mask, *_pass_and_tiles(kernel["tiles"]), *map(str, numbers), shared


def _pass_and_tiles(tiles: dict[str, int]) -> tuple[str, str]:
    """Of one kernel: that of the backward pass has two pairs of tiles, one per gradient that it accumulates."""
    pairs = [(tiles[f"BLOCK_M{n}"], tiles[f"BLOCK_N{n}"]) for n in ("", "1", "2") if f"BLOCK_M{n}" in tiles]
    return "forward" if len(pairs) == 1 else "backward", " and ".join(f"{m} x {n}" for m, n in pairs)


def head(results: Path) -> str:
    """Head and loss by variant."""
    columns: Cells = ("on", "rows x vocabulary", "variant", "milliseconds", "of limit", "extra memory, GiB", "of limit")
    columns += ("error of loss", "of gradients")

    def rows_of(result: Result) -> Iterable[Cells]:
        found = result["figures"]
        size = f"{found['supervised_rows']} x {found['vocabulary']}"
        for name, row in found["rows"].items():
            errors = row["errors"]
            gradients = max(errors["hidden_gradient"], errors["weight_gradient"])
            times = (f"{1e3 * row['seconds']:.1f}", f"{row['of_limit']:.2f}")
            memory = (f"{row['extra_bytes'] / 2**30:.2f}", f"{row['bytes_of_limit']:.2f}")
            yield device_of(result), size, name, *times, *memory, f"{errors['loss']:.0e}", f"{gradients:.0e}"
        for name, reason in found["missing"].items():
            yield device_of(result), size, name, reason, *[""] * 5

    return gpu_and_cpu(results, "head", rows_of, columns)


def mfu(results: Path) -> str:
    """FLOP utilisation."""
    columns = ("layers", "step", "utilisation", "TFLOP/s", "target", "of target")
    found, rows = utilisations(results), []
    for kind in KINDS:
        for step_kind in _KINDS:
            target = target_of(kind, step_kind)
            if "utilisation" not in found[kind]:
                rows.append((kind, step_kind, found[kind].get("missing", NOT_MEASURED), "", target, ""))
                continue
            share, tflops = found[kind]["utilisation"][step_kind], found[kind]["tflops"][step_kind]
            of_target = found[kind]["of_target"].get(step_kind)
            cells = (f"{share:.1%}", f"{tflops:.0f}", target, "" if of_target is None else f"{of_target:.2f}")
            rows.append((kind, step_kind, *cells))
    return markdown(columns, rows)


def utilisations(results: Path) -> dict[str, dict[str, Any]]:
    """What each kind of layers makes of a GPU: of `benchmarks.mfu`, else of the step of the same layers."""
    of_mfu, of_step = (load(results, name, on_gpu=True) for name in ("mfu", "step_8b"))
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    if of_step is not None and of_step["figures"].get("peak_tflops"):
        # Named "transformer_engine layers, flex attention".
        kind = of_step["figures"]["kernels"].split()[0]
        found[kind] = utilisation(of_step["figures"], 1e12 * of_step["figures"]["peak_tflops"], kind)
    return found if of_mfu is None else found | of_mfu["figures"]["kinds"]
