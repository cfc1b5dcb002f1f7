"""The plan of a run, printed by `run.dry=true`: everything that can be counted without building a model."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nld_train.config.counts import padded_vocabulary, parameter_count, rank_parameter_counts, step_flops
from nld_train.config.low_rank import lora_parameters
from nld_train.config.plan import data_parallel_size, micro_batches, stage_plans, tokens_per_step, total_steps
from nld_train.config.schema import Config
from nld_train.console import plain_console

# Wide enough for every row, so that a plan reads the same in a terminal, a pipe and a log file.
_WIDTH = 120


def print_plan(config: Config, world_size: int, data_facts: Iterable[tuple[str, str]] = ()) -> None:
    """Print the plan of `config` on `world_size` processes to standard output.

    Args:
        config: the run.
        world_size: number of processes.
        data_facts: names and values of further figures, which come from the data.
    """
    console = plain_console(width=_WIDTH)
    facts = Table(box=None, show_header=False, title=f"Plan of {config.run.name}", title_justify="left")
    for name, value in (*plan_facts(config, world_size), *data_facts):
        facts.add_row(name, value)
    console.print(facts)
    console.print(_stage_table(config))


def plan_facts(config: Config, world_size: int) -> Iterable[tuple[str, str]]:
    """Names and values of the figures that concern the whole run."""
    model, batch = config.model, config.batch
    parameters = parameter_count(model)
    yield "run.dir", config.run.dir
    yield "starts from", config.init.checkpoint or "random weights"
    yield "model", f"{model.name}: {_short(parameters)} parameters ({parameters:,}), embedding and head untied"
    yield "layout", _layout(config, world_size)
    yield "parameters per process", _rank_parameters(config)
    for plan in stage_plans(config):
        if (lora := plan.stage.lora) is not None:
            trained = f"{lora_parameters(model, lora):,} parameters of a LoRA of rank {lora.rank}"
            yield f"stage {plan.name} trains", f"{trained} on {', '.join(lora.targets)}; the others are frozen"
    step = f"{tokens_per_step(config):,} tokens per step"
    yield "global batch", f"{batch.global_size:,} samples x {batch.sequence_length:,} tokens = {step}"
    yield "micro-batches", f"{micro_batches(config, world_size)} of {batch.micro_size} per process and step"
    yield "run", _length(config)


def _short(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def _layout(config: Config, world_size: int) -> str:
    parallel = config.parallel
    context = f" x context {parallel.context}" if parallel.context > 1 else ""
    data = data_parallel_size(config, world_size)
    sizes = f"tensor {parallel.tensor} x pipeline {parallel.pipeline}{context} x data {data}"
    virtual = f"virtual pipeline {parallel.virtual_pipeline or 'none'}"
    return f"{world_size} = {sizes}, {virtual}, sequence parallel {'on' if parallel.sequence else 'off'}"


def _rank_parameters(config: Config) -> str:
    counts = rank_parameter_counts(config)
    shown = " / ".join(f"{count:,}" for count in counts)
    where = " by pipeline rank" if len(counts) > 1 else ""
    padded = padded_vocabulary(config)
    padding = f" (vocabulary padded to {padded:,})" if padded != config.model.vocab_size else ""
    return shown + where + padding


def _length(config: Config) -> str:
    plans = stage_plans(config)
    flops = sum(plan.steps * step_flops(config, plan.stage) for plan in plans)
    tokens = sum(plan.tokens for plan in plans)
    text = f"{total_steps(config):,} steps, {tokens:,} tokens, {flops:.3g} training FLOPs"
    if config.run.max_steps is not None:
        text += f"; stops after step {config.run.max_steps:,} (run.max_steps)"
    return text


def _stage_table(config: Config) -> Table:
    table = Table(box=SIMPLE_HEAD)
    columns = ("stage", "kind", "steps", "tokens", "first step", "alpha", "averaging", "learning rate", "FLOPs/step")
    for column in columns:
        table.add_column(column, justify="left" if column in ("stage", "kind", "averaging") else "right", no_wrap=True)
    for plan in stage_plans(config):
        schedule = plan.stage.schedule
        rate = f"{schedule.learning_rate:g} -> {schedule.final_learning_rate:g}"
        flops = f"{step_flops(config, plan.stage):.3g}"
        numbers = (f"{plan.steps:,}", f"{plan.tokens:,}", f"{plan.first_step:,}", f"{plan.stage.alpha:g}")
        table.add_row(plan.name, plan.stage.kind, *numbers, plan.stage.averaging, rate, flops)
    return table
