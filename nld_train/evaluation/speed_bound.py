"""The speed of light: the oracle's tokens per forward by block length, beside what every way to decode achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.command_line.terminal import numeric
from nld_train.evaluation.measure import Figures, figures, plot, shown
from nld_train.evaluation.oracle import Oracle, OracleBlock
from nld_train.evaluation.trajectories import ONE_PER_PASS

ORACLE = "oracle"
DIFFUSION = "diffusion"
# What bounds the others from above and below.
_STYLES: dict[str, dict[str, Any]] = {
    ORACLE: {"color": "k", "linestyle": "--"},
    "ar": {"color": "grey", "linestyle": ":", "zorder": 5},
}
_SPECULATIVE: tuple[Literal["linear", "quadratic"], ...] = ("linear", "quadratic")


def measure_bound(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    policies: Mapping[str, CommitPolicy],
    batch_size: int,
    budget: int,
) -> Figures:
    """Decodes the prompts in every way at one block length.

    Args:
        engine: the model.
        prompts: ids of each.
        options: greedy; the block length is theirs.
        policies: of diffusion decoding, by name, that are held against the oracle.
        batch_size: most prompts at work at once.
        budget: of the oracle, uncounted forwards per block.

    Returns:
        `block_length`; `ways`, by name what `measure.figures` has; `oracle_blocks`, how the oracle's blocks went (see
        `of_blocks`).
    """
    reference = decode(engine, prompts, "ar", options, None, batch_size=batch_size)
    rivals = {**policies, "one per pass": ONE_PER_PASS}
    oracle = Oracle(budget, policies)
    ways: dict[str, DecodeResult] = {
        ORACLE: decode(engine, prompts, "diffusion", options, oracle, batch_size=batch_size),
        "ar": reference,
    }
    for name, policy in rivals.items():
        ways[f"{DIFFUSION}, {name}"] = decode(engine, prompts, "diffusion", options, policy, batch_size=batch_size)
    for mode in _SPECULATIVE:
        ways[mode] = decode(engine, prompts, mode, options, None, batch_size=batch_size)
    if engine.has_adapter:
        with_adapter = replace(options, adapter=True)
        ways["linear + adapter"] = decode(engine, prompts, "linear", with_adapter, None, batch_size=batch_size)
    return {
        "block_length": options.block_length,
        "ways": {name: figures(result, reference) for name, result in ways.items()},
        "oracle_blocks": of_blocks(oracle.blocks),
    }


def of_blocks(blocks: Sequence[OracleBlock]) -> Figures:
    """Only complete blocks with a mask count: where a stop ended a row, nobody needed the rest.

    Returns:
        `blocks`; `passes` and `masks` per block; `exhausted`, blocks whose search ended for want of forwards;
        `forwards` that the oracle spent per block; `searched`, blocks small enough for an exhaustive search, and
        `longer_than_shortest`, those of them in which the oracle took more passes than needed; `rivals`, per policy
        how many blocks it ended at the oracle's target (`same`), and in fewer passes (`fewer`).
    """
    whole = [block for block in blocks if block.complete and block.masks]
    searched = [block for block in whole if block.fewest is not None]
    names = list(whole[0].rivals) if whole else []
    return {
        "blocks": len(whole),
        "masks": fmean(block.masks for block in whole) if whole else None,
        "passes": fmean(block.passes for block in whole) if whole else None,
        "forwards": fmean(block.forwards for block in whole) if whole else None,
        "exhausted": sum(block.exhausted for block in whole),
        "searched": len(searched),
        "longer_than_shortest": sum((block.fewest or 0) < block.passes for block in searched),
        "rivals": {name: _rival(name, whole) for name in names},
    }


def _rival(name: str, blocks: Sequence[OracleBlock]) -> Figures:
    ends = [(block, *block.rivals[name]) for block in blocks]
    return {
        "same": sum(same for _, _, same in ends),
        "fewer": sum(same and passes < block.passes for block, passes, same in ends),
    }


def print_bound(console: Console, bounds: Sequence[Figures]) -> None:
    """Tables with a column per block length: tokens per forward, accepted per pass, and the oracle's blocks."""
    ways = list(bounds[0]["ways"])
    denoising = [name for name in ways if name == ORACLE or name.startswith(DIFFUSION)]
    for title, names, key in (
        ("tokens per forward", ways, "tokens_per_forward"),
        ("accepted per denoising pass", denoising, "accepted_per_pass"),
    ):
        rows = {name: [shown(bound["ways"][name][key]) for bound in bounds] for name in names}
        console.print(_table(title, bounds, rows))
    blocks = [bound["oracle_blocks"] for bound in bounds]
    console.print(_table("blocks of the oracle", bounds, _remarks(blocks)))


def _table(title: str, bounds: Sequence[Figures], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title, *(numeric(f"B = {bound['block_length']}") for bound in bounds))
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _remarks(blocks: Sequence[Figures]) -> dict[str, list[str]]:
    rows = {
        "complete": [str(one["blocks"]) for one in blocks],
        "masks, mean": [shown(one["masks"]) for one in blocks],
        "passes, mean": [shown(one["passes"]) for one in blocks],
        "cut short by the budget": [str(one["exhausted"]) for one in blocks],
        "a shorter way exists, of those searched": [
            f"{one['longer_than_shortest']} of {one['searched']}" if one["searched"] else "-" for one in blocks
        ],
    }
    for name in dict.fromkeys(name for one in blocks for name in one["rivals"]):
        rivals = [one["rivals"].get(name) for one in blocks]
        rows[f"{name}: same target"] = [str(rival["same"]) if rival else "-" for rival in rivals]
        rows[f"{name}: same target, fewer passes"] = [str(rival["fewer"]) if rival else "-" for rival in rivals]
    return rows


def draw_bound(path: str, bounds: Sequence[Figures]) -> None:
    """Tokens per forward over the block length, both logarithmic, a line per way, as PNG."""
    lengths = [bound["block_length"] for bound in bounds]
    with plot(path, 1, width=8) as (axis,):
        for name in bounds[0]["ways"]:
            values = [bound["ways"][name]["tokens_per_forward"] for bound in bounds]
            axis.plot(lengths, values, marker="o", markersize=4, label=name, **_STYLES.get(name, {}))
        axis.set(xlabel="block length", ylabel="tokens per forward", xscale="log", yscale="log")
        axis.set_xticks(lengths, list(map(str, lengths)))
        for scale in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            scale("{x:g}")
        axis.xaxis.minorticks_off()
