"""`nld-bound`: the speed of light of diffusion decoding by block length, beside the tokens per forward of every mode.

The oracle is that of arXiv 2607.05722 (docs/method.md, "Oracle bound").
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine, Mode, Threshold
from nld_train.decoding.algorithms.options import BlockStart
from nld_train.decoding.command_line.terminal import numeric, report_console
from nld_train.decoding.policies.sampler_files import load_sampler
from nld_train.decoding.policies.trained_sampler import SamplerPolicy
from nld_train.errors import UserError
from nld_train.evaluation.by_category import MEANS
from nld_train.evaluation.greedy_acceptance import GreedyAcceptance
from nld_train.evaluation.measure import Figures, decoding_progress, shown
from nld_train.evaluation.oracle import FORWARDS_PER_BLOCK, GREEDY_ACCEPTANCE, Oracle, OracleBlock, Safety
from nld_train.evaluation.reports import (
    ReportRequest,
    give_report,
    plot,
    read_report_request,
    trained_sampler_directory,
)
from nld_train.evaluation.trajectories import ONE_PER_PASS

ORACLE, ONE = "oracle", "one per pass"
DIFFUSION = "diffusion"
# Variants whose blocks start as the bound's do.
_BOUND = (ORACLE, GREEDY_ACCEPTANCE, ONE)
_WITH_ADAPTER = "linear + adapter"
# The oracle bounds the other curves from above, AR from below.
_STYLES: dict[str, dict[str, Any]] = {
    ORACLE: {"color": "k", "linestyle": "--"},
    GREEDY_ACCEPTANCE: {"color": "k", "linestyle": "-.", "linewidth": 0.8},
    ONE: {"color": "k", "linestyle": ":", "linewidth": 0.8},
    "ar": {"color": "grey", "linestyle": ":", "zorder": 5},
}
_SPECULATIVE: tuple[Literal["linear", "quadratic"], ...] = ("linear", "quadratic")


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.bound` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read.
    """
    if arguments.budget < 1:
        raise UserError(f"--budget: {arguments.budget} is not 1 or more")
    request, settings = read_report_request(arguments, arguments.block_lengths, [arguments.threshold])
    directory = trained_sampler_directory(arguments, request)
    with request.source.open() as engine:
        policies: dict[str, CommitPolicy] = {f"threshold {arguments.threshold:g}": Threshold(arguments.threshold)}
        if directory:
            policies["trained sampler"] = SamplerPolicy(load_sampler(directory, engine), arguments.threshold)
        bound = Bound(arguments.block_start, arguments.safety, arguments.budget)
        bounds = [measure_bound(engine, request, options, policies, bound) for options in settings]
    give_report(
        arguments,
        {"bounds": bounds},
        lambda: print_bound(report_console(), bounds),
        lambda path: draw_bound(path, bounds),
    )


@dataclass(frozen=True)
class Bound:
    """Settings of the bound.

    Attributes:
        block_start: of the blocks of the oracle, of greedy acceptance and of one token per pass.
        safety: of the oracle's sets.
        budget: simulated forwards per block.
    """

    block_start: BlockStart = "masks"
    safety: Safety = "greedy"
    budget: int = FORWARDS_PER_BLOCK


def measure_bound(
    engine: Engine,
    request: ReportRequest,
    options: DecodeOptions,
    policies: Mapping[str, CommitPolicy],
    bound: Bound,
) -> Figures:
    """Decodes the prompts with the bound's three policies, with others and in every other mode, at one block length.

    Args:
        engine: the model.
        request: the prompts, and their categories.
        options: greedy, with the block length.
        policies: of diffusion decoding, by name, which are compared with the oracle.
        bound: its settings.

    Returns:
        `block_length`; `block_start` and `safety` of the bound; `variants`, by name what `decoding_figures` returns,
        of all prompts and by category; `oracle_blocks`, what `block_figures` returns.
    """
    oracle = Oracle(bound.budget, policies, safety=bound.safety)
    wanted: dict[str, tuple[Mode, CommitPolicy | None]] = {
        ORACLE: ("diffusion", oracle),
        GREEDY_ACCEPTANCE: ("diffusion", GreedyAcceptance()),
        ONE: ("diffusion", ONE_PER_PASS),
        "ar": ("ar", None),
        **{f"{DIFFUSION}, {name}": ("diffusion", policy) for name, policy in policies.items()},
        **{mode: (mode, None) for mode in _SPECULATIVE},
    }
    if engine.has_adapter:
        wanted[_WITH_ADAPTER] = ("linear", None)
    variants: dict[str, DecodeResult] = {}
    sequences = len(wanted) * len(request.prompts)
    with decoding_progress(f"blocks of {options.block_length}", sequences, options.max_new_tokens) as observer:
        for name, (mode, policy) in wanted.items():
            start = bound.block_start if name in _BOUND else options.block_start
            own = replace(options, adapter=name == _WITH_ADAPTER, block_start=start)
            variants[name] = request.decode(engine, mode, own, policy, observer())
    return {
        "block_length": options.block_length,
        "block_start": bound.block_start,
        "safety": bound.safety,
        "variants": {name: request.figures(result, variants["ar"]) for name, result in variants.items()},
        "oracle_blocks": block_figures(oracle.blocks),
    }


def block_figures(blocks: Sequence[OracleBlock]) -> Figures:
    """Figures of the oracle's blocks. Only blocks that were completed and had a mask count.

    Returns:
        `blocks`; `passes` and `masks` per block; `exhausted`, number of blocks whose search ran out of forwards;
        `forwards` of the search per block; `searched`, number of blocks small enough for an exhaustive search, and
        `longer_than_shortest`, the number of them in which the oracle took more passes than needed; `policies`: per
        policy the number of blocks in which it ended at the oracle's target (`same`), and in fewer passes (`fewer`).
    """
    whole = [block for block in blocks if block.complete and block.masks]
    searched = [block for block in whole if block.fewest is not None]
    names = list(whole[0].policies) if whole else []
    return {
        "blocks": len(whole),
        "masks": fmean(block.masks for block in whole) if whole else None,
        "passes": fmean(block.passes for block in whole) if whole else None,
        "forwards": fmean(block.forwards for block in whole) if whole else None,
        "exhausted": sum(block.exhausted for block in whole),
        "searched": len(searched),
        "longer_than_shortest": sum((block.fewest or 0) < block.passes for block in searched),
        "policies": {name: _policy_figures(name, whole) for name in names},
    }


def _policy_figures(name: str, blocks: Sequence[OracleBlock]) -> Figures:
    ends = [(block, *block.policies[name]) for block in blocks]
    return {
        "same": sum(same for _, _, same in ends),
        "fewer": sum(same and passes < block.passes for block, passes, same in ends),
    }


def print_bound(console: Console, bounds: Sequence[Figures]) -> None:
    """Prints tables with a column per block length: tokens per forward, accepted per pass, the oracle's blocks."""
    variants = list(bounds[0]["variants"])
    denoising = [name for name in variants if name in _BOUND or name.startswith(DIFFUSION)]
    for title, names, key in (
        ("tokens per forward", variants, "tokens_per_forward"),
        ("accepted per denoising pass", denoising, "accepted_length"),
    ):
        figures = {name: [bound["variants"][name] for bound in bounds] for name in names}
        rows = {name: [shown(one[key]) for one in ones] for name, ones in figures.items()}
        console.print(_table(title, bounds, rows))
        for mean, of_what in MEANS.items():
            if mean in bounds[0]["variants"][ORACLE]:
                means = {name: [shown(one[mean].get(key)) for one in ones] for name, ones in figures.items()}
                console.print(_table(f"{title}, {of_what}", bounds, means))
    blocks = [bound["oracle_blocks"] for bound in bounds]
    console.print(_table("blocks of the oracle", bounds, _block_rows(blocks)))


def _table(title: str, bounds: Sequence[Figures], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title, *(numeric(f"B = {bound['block_length']}") for bound in bounds))
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _block_rows(blocks: Sequence[Figures]) -> dict[str, list[str]]:
    rows = {
        "complete": [str(one["blocks"]) for one in blocks],
        "masks, mean": [shown(one["masks"]) for one in blocks],
        "passes, mean": [shown(one["passes"]) for one in blocks],
        "cut short by the budget": [str(one["exhausted"]) for one in blocks],
        "fewer passes would do, of those searched": [
            f"{one['longer_than_shortest']} of {one['searched']}" if one["searched"] else "-" for one in blocks
        ],
    }
    for name in dict.fromkeys(name for one in blocks for name in one["policies"]):
        found = [one["policies"].get(name) for one in blocks]
        rows[f"{name}: same target"] = [str(policy["same"]) if policy else "-" for policy in found]
        rows[f"{name}: same target, fewer passes"] = [str(policy["fewer"]) if policy else "-" for policy in found]
    return rows


def draw_bound(path: str, bounds: Sequence[Figures]) -> None:
    """Tokens per forward over the block length, both logarithmic, a line per variant, as PNG."""
    lengths = [bound["block_length"] for bound in bounds]
    with plot(path, 1, width=8) as (axis,):
        for name in bounds[0]["variants"]:
            values = [bound["variants"][name]["tokens_per_forward"] for bound in bounds]
            axis.plot(lengths, values, marker="o", markersize=4, label=name, **_STYLES.get(name, {}))
        axis.set(xlabel="block length", ylabel="tokens per forward", xscale="log", yscale="log")
        axis.set_xticks(lengths, list(map(str, lengths)))
        for scale in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            scale("{x:g}")
        axis.xaxis.minorticks_off()
