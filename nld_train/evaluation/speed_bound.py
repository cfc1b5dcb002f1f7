"""The speed of light: the oracle's tokens per forward by block length, beside what every way to decode achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from rich.console import Console
from rich.table import Column, Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine
from nld_train.evaluation.measure import Figures, decode_all, figures, plot, shown
from nld_train.evaluation.oracle import Oracle, OracleBlock
from nld_train.evaluation.trajectories import ONE_PER_PASS

ORACLE = "oracle"
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
        batch_size: prompts that are decoded together.
        budget: of the oracle, uncounted forwards per block.

    Returns:
        `block_length`; `ways`, by name what `measure.figures` has; `oracle_blocks`, how the oracle's blocks went (see
        `_of_blocks`).
    """
    reference = decode_all(engine, prompts, "ar", options, None, batch_size)
    rivals = {**policies, "one per pass": ONE_PER_PASS}
    oracle = Oracle(budget, policies)
    ways: dict[str, DecodeResult] = {
        ORACLE: decode_all(engine, prompts, "diffusion", options, oracle, batch_size),
        "ar": reference,
    }
    for name, policy in rivals.items():
        ways[f"diffusion, {name}"] = decode_all(engine, prompts, "diffusion", options, policy, batch_size)
    for mode in _SPECULATIVE:
        ways[mode] = decode_all(engine, prompts, mode, options, None, batch_size)
    if engine.has_adapter:
        with_adapter = replace(options, adapter=True)
        ways["linear + adapter"] = decode_all(engine, prompts, "linear", with_adapter, None, batch_size)
    return {
        "block_length": options.block_length,
        "ways": {name: figures(result, reference) for name, result in ways.items()},
        "oracle_blocks": _of_blocks(oracle.blocks),
    }


def _of_blocks(blocks: Sequence[OracleBlock]) -> Figures:
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
    """One table of tokens per forward, a column per block length, and what there is to say of the oracle's blocks."""
    lengths = [bound["block_length"] for bound in bounds]
    table = Table("tokens per forward", *(Column(f"B = {length}", justify="right") for length in lengths))
    for name in bounds[0]["ways"]:
        table.add_row(name, *(shown(bound["ways"][name]["tokens_per_forward"]) for bound in bounds))
    table.add_section()
    for name in (name for name in bounds[0]["ways"] if name == ORACLE or name.startswith("diffusion")):
        accepted = (bound["ways"][name]["accepted_per_pass"] for bound in bounds)
        table.add_row(f"{name}: accepted per denoising pass", *map(shown, accepted))
    console.print(table)
    for bound in bounds:
        console.print(_remark(bound), soft_wrap=True)


def _remark(bound: Figures) -> str:
    blocks = bound["oracle_blocks"]
    parts = [f"B = {bound['block_length']}: {blocks['blocks']} blocks"]
    if blocks["searched"]:
        parts.append(f"the oracle took more passes than needed in {blocks['longer_than_shortest']}")
    elif blocks["blocks"]:
        parts.append("too long for an exhaustive search")
    parts += [
        f"{name} ended at its target in {rival['same']}, in fewer passes in {rival['fewer']}"
        for name, rival in blocks["rivals"].items()
    ]
    if blocks["exhausted"]:
        parts.append(f"the budget was short in {blocks['exhausted']}")
    return "; ".join(parts)


def draw_bound(path: str, bounds: Sequence[Figures]) -> None:
    """Tokens per forward over the block length, a line per way, as PNG."""
    lengths = [bound["block_length"] for bound in bounds]
    with plot(path, 1, width=8) as (axis,):
        for name in bounds[0]["ways"]:
            style = {"color": "k", "linestyle": "--"} if name == ORACLE else {}
            values = [bound["ways"][name]["tokens_per_forward"] for bound in bounds]
            axis.plot(lengths, values, marker="o", markersize=4, label=name, **style)
        axis.set(xlabel="block length", ylabel="tokens per forward", xscale="log", xticks=lengths)
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.minorticks_off()
