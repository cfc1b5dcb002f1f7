"""Milliseconds of a decode forward in each mode at one sequence, and the speed-up that they allow.

    python -m benchmarks.forwards                                  the whole 8B model with random weights
    python -m benchmarks.forwards --checkpoint runs/quickstart     a trained model, whose tokens are counted

Modes: AR; diffusion, one token per pass and with a threshold; linear self-speculation. The decoder of a run decodes the
same prompt in each of them, round by round. The time of a forward does not depend on the weights, but the number of
tokens that it commits does: random weights accept no drafts. So without a checkpoint the speed-ups over AR and over one
token per pass are computed, from the measured times and from the tokens per forward that the paper reports for its 8B
model; with a checkpoint they are ratios of measured tokens per second. The figures say which.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoders import stdlib_prompts
from benchmarks.record import RESULTS, result_name, write_result
from benchmarks.shapes import SHAPES, random_run
from benchmarks.timing import synchronize
from nld_train.decoding import DecodeOptions, DecodeResult, Engine, FixedNumber, Mode, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.statistics import graph_share, tokens_per_forward
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.errors import exit_status
from nld_train.training.loop.parallel import parallel_groups, resolve_device

AR, ONE_PER_PASS, DIFFUSION, LINEAR = "ar", "diffusion, one per pass", "diffusion, threshold 0.9", "linear"
# The paper's tokens per forward, 8B: docs/method.md.
PUBLISHED = {DIFFUSION: 2.46, LINEAR: 3.63}


@dataclass(frozen=True)
class Variant:
    """What is timed: a decode mode and, for diffusion, the commit policy."""

    mode: Mode
    policy: CommitPolicy | None = None


VARIANTS = {
    AR: Variant("ar"),
    ONE_PER_PASS: Variant("diffusion", FixedNumber(1)),
    DIFFUSION: Variant("diffusion", Threshold(0.9)),
    LINEAR: Variant("linear"),
}
# What is compared with what, and how many times as fast it should be.
TARGETS = {LINEAR: (AR, 3.3), DIFFUSION: (ONE_PER_PASS, 2.1)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the random model, as for nld-train")
    parser.add_argument("--shape", choices=[*SHAPES, "none"], default="8b", help="shape of the model (default: 8b)")
    parser.add_argument("--checkpoint", type=Path, help="decode with this run or checkpoint (default: random weights)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="tokens of the prompt (default: 64)")
    parser.add_argument("--new-tokens", type=int, default=128, help="new tokens (default: 128)")
    parser.add_argument("--block-length", type=int, default=32, help="tokens per block (default: 32)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with _engine(options) as (engine, prompt, device):
        found = measure(engine, prompt, device, options)
    weights = "random" if options.checkpoint is None else str(options.checkpoint)
    figures = {"device": str(device), "weights": weights, "block_length": options.block_length, **figures_of(found)}
    figures["targets"] = targets_of(figures["rows"], counted=options.checkpoint is not None)
    show(figures)
    name = "forwards" if options.checkpoint is None else "forwards_checkpoint"
    print(write_result(result_name(name, device), figures, options.results))


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[tuple[Engine, list[int], torch.device]]:
    """The engine of a checkpoint or of random weights, a prompt, and the device."""
    if options.checkpoint is not None:
        from nld_train.decoding.load import find_source

        source = find_source(options.checkpoint)
        (prompt,) = stdlib_prompts(source.tokenizer, 1, options.prompt_tokens)
        with source.open() as engine:
            yield engine, prompt, resolve_device("auto")
        return
    from benchmarks.stepper import fill
    from nld_train.decoding.engines.megatron_engine import MegatronEngine
    from nld_train.model.build import build_model, transformer_config
    from nld_train.model.rotary import RotaryEmbedding

    shape = None if options.shape == "none" else options.shape
    with random_run(shape, options.overrides) as config, parallel_groups(config) as device:
        chunks = build_model(config, transformer_config(config, device), device)
        fill(chunks, config, device)
        generator = torch.Generator().manual_seed(1)
        highest = min(config.model.vocab_size, config.model.mask_token_id)
        prompt = torch.randint(highest // 2, highest, (options.prompt_tokens,), generator=generator).tolist()
        with MegatronEngine(chunks, config.model, RotaryEmbedding(config.model, device)).decoding() as engine:
            yield engine, prompt, device


@dataclass
class Timing:
    """Seconds of each timed round of a variant, and its last result."""

    seconds: list[float]
    result: DecodeResult


def measure(engine: Engine, prompt: list[int], device: torch.device, options: argparse.Namespace) -> dict[str, Timing]:
    """Decodes in every variant, round by round, after one round that is not timed."""
    settings = DecodeOptions(max_new_tokens=options.new_tokens, block_length=options.block_length)
    found: dict[str, Timing] = {}
    for round_number in range(1 + options.repeats):
        for name, variant in VARIANTS.items():
            synchronize(device)
            begin = time.perf_counter()
            result = decode(engine, [prompt], variant.mode, settings, variant.policy)
            synchronize(device)
            seconds = time.perf_counter() - begin
            if round_number == 0:
                found[name] = Timing([], result)
            else:
                found[name].seconds.append(seconds)
    return found


def figures_of(found: dict[str, Timing]) -> dict[str, Any]:
    """Times and counts of each variant. A prefill counts as a forward, so that its time is no part of the others'."""
    rows = {}
    for name, timing in found.items():
        result, seconds = timing.result, median(timing.seconds)
        rows[name] = {
            "milliseconds_per_forward": 1e3 * seconds / (result.forwards + result.prefill),
            "forwards": result.forwards,
            "tokens_per_forward": tokens_per_forward(result),
            "tokens_per_second": sum(result.new_tokens) / seconds,
            "graph_share": graph_share(result),
        }
    return {"rows": rows}


def targets_of(rows: dict[str, dict[str, float]], counted: bool) -> list[dict[str, Any]]:
    """Speed-ups and their targets.

    Args:
        rows: of `figures_of`.
        counted: whether they are ratios of measured tokens per second; else they follow from the published tokens per
            forward.
    """
    targets = []
    for name, (other, target) in TARGETS.items():
        ratio = rows[name]["tokens_per_second"] / rows[other]["tokens_per_second"]
        if not counted:
            tokens = PUBLISHED[name] / rows[other]["tokens_per_forward"]
            ratio = tokens * rows[other]["milliseconds_per_forward"] / rows[name]["milliseconds_per_forward"]
        kind = "measured" if counted else f"computed, at {PUBLISHED[name]} tokens per forward"
        targets.append({"name": f"{name} over {other}", "target": target, "ratio": ratio, "kind": kind})
    return targets


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table and a line for each target."""
    table = Table("mode", "ms per forward", "forwards", "tokens per forward", "tokens/s", "in CUDA graphs")
    for name, row in figures["rows"].items():
        cells = (f"{row['milliseconds_per_forward']:.2f}", f"{row['forwards']}", f"{row['tokens_per_forward']:.2f}")
        table.add_row(name, *cells, f"{row['tokens_per_second']:,.1f}", f"{row['graph_share']:.0%}")
    console = Console(width=110, highlight=False)
    console.print(table)
    for target in figures["targets"]:
        console.print(f"{target['name']}: {target['ratio']:.2f} times (target {target['target']}; {target['kind']})")


if __name__ == "__main__":
    sys.exit(exit_status(main))
