"""What head and loss take: seconds, peak memory and exactness, for ways that make all logits, chunks of them, or none.

    python -m benchmarks.head                                      vocabulary 131072 and width 4096 on a GPU
    python -m benchmarks.head --vocabulary 8192 --length 256       in small

A joint step has 2L positions, of which the clean ones and the masked noisy ones (here every second) are supervised.
Ways: all 2L rows of logits at once; the supervised rows at once; the same in chunks (what a run does, see
`nld_train/losses/cross_entropy.py`); Liger's fused kernel and cut-cross-entropy where they are installed, on CUDA.
Every way gives the mean over the supervised rows; loss and gradients are compared with float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import RESULTS, keep, on_device
from benchmarks.timing import extra_memory, seconds_in_turn
from nld_train.config.compose import compose_config
from nld_train.training.parallel import parallel_groups

CHUNKED, WHOLE, EVERYTHING = "chunked", "whole supervised rows", "whole, all 2L rows"
# Packages that know a way of their own, and the name of the way.
PACKAGES = {"liger_kernel": "Liger", "cut_cross_entropy": "cut-cross-entropy"}


class Work:
    """Hidden states of both streams, supervised rows and the head's matrix.

    Args:
        options: the command line.
        device: where.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(1)
        length, width, vocabulary = options.length, options.width, options.vocabulary

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        self.hidden = drawn(2 * length, width).to(dtype).requires_grad_()
        # Logits of a spread as in a trained model.
        self.weight = (drawn(vocabulary, width) * 2 * width**-0.5).to(dtype).requires_grad_()
        # All clean rows, which come behind the noisy ones, and every second noisy one.
        self.index = torch.cat([torch.arange(length, 2 * length), torch.arange(0, length, 2)]).to(device)
        targets = torch.randint(0, vocabulary, (len(self.index),), generator=torch.Generator().manual_seed(1))
        self.targets, self.chunk_rows, self.vocabulary = targets.to(device), options.chunk_rows, vocabulary

    @property
    def rows(self) -> Tensor:
        """Hidden states of the supervised rows."""
        return self.hidden.index_select(0, self.index)


def everything(work: Work) -> Tensor:
    """Logits of both streams, as public implementations have them, in float32 for the loss."""
    logits = (work.hidden @ work.weight.T).float()
    targets = torch.full(logits.shape[:1], -100, device=logits.device)
    return F.cross_entropy(logits, targets.index_copy(0, work.index, work.targets))


def whole(work: Work) -> Tensor:
    """Logits of the supervised rows, all at once."""
    return F.cross_entropy((work.rows @ work.weight.T).float(), work.targets)


def chunked(work: Work) -> Tensor:
    """What a run does."""
    from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll

    nll = vocabulary_parallel_nll(work.vocabulary)
    return chunked_nll(work.rows, work.targets, lambda some: some @ work.weight.T, nll, work.chunk_rows).mean()


def _in_float64(work: Work) -> Tensor:
    """What all are compared with; its gradients arrive at the work's own tensors."""
    return F.cross_entropy(work.rows.double() @ work.weight.double().T, work.targets)


def liger(work: Work) -> Tensor:
    """Liger's kernel makes the gradient in its forward pass, so that rows cannot be weighted one by one."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Any = liger_fused_linear_cross_entropy(work.rows, work.weight, work.targets, reduction="mean")
    return loss[0] if isinstance(loss, tuple) else loss


def cut(work: Work) -> Tensor:
    """cut-cross-entropy makes no logits in memory; it knows one process's vocabulary only."""
    from cut_cross_entropy import linear_cross_entropy

    nll: Tensor = linear_cross_entropy(work.rows, work.weight, work.targets, reduction="none")
    return nll.float().mean()


def ways(device: torch.device) -> tuple[dict[str, Callable[[Work], Tensor]], dict[str, str]]:
    """The ways that can run here, and why the others cannot."""
    found: dict[str, Callable[[Work], Tensor]] = {EVERYTHING: everything, WHOLE: whole, CHUNKED: chunked}
    missing = {}
    for package, way in zip(PACKAGES, (liger, cut), strict=True):
        name = PACKAGES[package]
        if find_spec(package) is None:
            missing[name] = "not installed"
        elif device.type != "cuda":
            missing[name] = "not measured: needs CUDA"
        else:
            found[name] = way
    return found, missing


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="where (default: auto)")
    parser.add_argument("--vocabulary", type=int, default=131072, help="ids (default: 131072)")
    parser.add_argument("--length", type=int, help="tokens of the sample (default: 4096, on a CPU 128)")
    parser.add_argument("--width", type=int, help="of the hidden states (default: 4096, on a CPU 256)")
    parser.add_argument("--chunk-rows", type=int, help="rows per chunk (default: a run's 2048, on a CPU 64)")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes (default: 5)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with parallel_groups(compose_config([f"execution.device={options.device}"])) as device:
        on_cpu = device.type == "cpu"
        options.length = options.length or (128 if on_cpu else 4096)
        options.width = options.width or (256 if on_cpu else 4096)
        options.chunk_rows = options.chunk_rows or (64 if on_cpu else 2048)
        figures = measure(options, device)
        show(figures)
        print(keep(on_device("head", device), figures, options.results))


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds, bytes and errors of every way."""
    work = Work(options, device)
    found, missing = ways(device)
    expected = _gradients(_in_float64(work), work)
    passes = {name: _pass(way, work) for name, way in found.items()}
    seconds = seconds_in_turn(passes, device, options.repeats)
    rows: dict[str, Any] = {}
    for name in found:
        rows[name] = {
            "seconds": median(seconds[name]),
            "extra_bytes": extra_memory(passes[name], device),
            "errors": _errors(passes[name](), expected),
        }
    shape = {name: getattr(options, name) for name in ("vocabulary", "length", "width", "chunk_rows")}
    return {"device": str(device), **shape, "supervised_rows": len(work.index), "rows": rows, "missing": missing}


def _pass(way: Callable[[Work], Tensor], work: Work) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: _gradients(way(work), work)


def _gradients(loss: Tensor, work: Work) -> tuple[Tensor, ...]:
    """The loss, and its gradients by hidden states and head."""
    return (loss.detach(), *torch.autograd.grad(loss, [work.hidden, work.weight]))


def _errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Relative error of the loss, and of each gradient as a norm."""
    names = ("loss", "hidden_gradient", "weight_gradient")
    return {
        name: float((got.float() - want.float()).norm() / want.float().norm())
        for name, got, want in zip(names, found, expected, strict=True)
    }


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    title = f"V = {figures['vocabulary']}, {figures['supervised_rows']} rows, width {figures['width']}"
    table = Table("head and loss", "milliseconds", "extra memory (GiB)", "error of loss, gradients", title=title)
    for name, row in figures["rows"].items():
        errors = ", ".join(f"{error:.0e}" for error in row["errors"].values())
        table.add_row(name, f"{1e3 * row['seconds']:.1f}", f"{row['extra_bytes'] / 2**30:.2f}", errors)
    for name, reason in figures["missing"].items():
        table.add_row(name, reason, "", "")
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
