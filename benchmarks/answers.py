"""The cost of fine-tuning on answers: the joint loss with a noisy stream of answers, over the AR loss alone.

    python -m benchmarks.answers                                   the quickstart's shapes, answers of 13 tokens
    python -m benchmarks.answers --answer 100 batch.sequence_length=1024

Three steps on the same packed conversations: `ar`, the AR loss of answers without a noisy stream; `answers`, whose
noisy stream has the blocks of the answers and nothing else, as in an sft stage; and `whole`, whose noisy stream repeats
all tokens. Prints their times, the ratios to `ar`, and the limits of these ratios, which are counted from the tokens in
use: P prompt and R answer tokens are P + 2R with the fill of blocks, 2 (P + R) with the whole stream. What pads a
sample is no part of a limit.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arithmetic import arithmetic, used_layout
from benchmarks.record import RESULTS, result_name, write_result
from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.data.collate import Samples
from nld_train.data.sample_sets import resolve_noisy_lengths
from nld_train.errors import UserError, exit_status
from nld_train.masking.layout import StreamLayout
from nld_train.training.loop.packing import pack_conversations
from nld_train.training.loop.parallel import parallel_groups

STEPS = ("ar", "answers", "whole")
# The time of a step of answers over that of an AR step, within this multiple of its limit.
TARGET = 1.10
_CONVERSATIONS = 3000


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--prompt", type=int, default=35, help="characters of a question, in the mean (default: 35)")
    parser.add_argument("--answer", type=int, default=12, help="characters of an answer, in the mean (default: 12)")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each kind (default: 9)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with conversations(options.prompt, options.answer, options.overrides) as config, parallel_groups(config) as device:
        figures = {"prompt": options.prompt, "answer": options.answer, **measure(config, device, options.steps)}
    show(figures)
    print(write_result(result_name("answers", device), figures, options.results))


@contextmanager
def conversations(prompt: int, answer: int, overrides: Sequence[str]) -> Iterator[Config]:
    """A run over conversations of one question and one answer of random letters, prepared in a temporary folder."""
    with TemporaryDirectory(prefix="nld-answers-") as folder:
        draw, rows = random.Random(1), []
        for _ in range(_CONVERSATIONS):
            texts = (
                "".join(draw.choices(string.ascii_lowercase, k=draw.randint(n // 2, 3 * n // 2)))
                for n in (prompt, answer)
            )
            roles = ("user", "assistant")
            rows.append(
                {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}
            )
        path = Path(folder) / "random.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        command = [sys.executable, "-m", "nld_train.commands.data", "prepare", "--chat", str(path)]
        words = ["--out", folder, "--tokenizer", "bytes"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"nld-data prepare --chat: {done.stderr.strip()[-500:]}")
        config = compose_config(
            [
                "stages=[quickstart,sft]",
                "run.stages=[sft]",
                f"run.dir={folder}/run",
                f"data.train=[{{prefix: {folder}/random, weight: 1}}]",
                "data.validation=[]",
                "data.tokenizer=null",
                "data.workers=0",
                "validation.every=0",
                "evaluation.every=0",
                "logging.wandb.mode=disabled",
                *overrides,
            ]
        )
        # An AR step with the noisy stream's samples is an sft stage without alpha.
        stage = config.stages["sft"]
        stages = {"ar": replace(stage, alpha=0.0), "answers": stage, "whole": stage}
        yield resolve_noisy_lengths(replace(config, stages={**config.stages, **stages, "joint": stage}), 1)


def measure(config: Config, device: torch.device, steps: int) -> dict[str, Any]:
    """Times alternating steps, so that a change in the machine's speed affects all alike."""
    from benchmarks.stepper import Stepper

    pack_conversations(config)
    stepper = Stepper(config, device)
    samples = stepper.prepare("sft")
    stepper.samples = {"ar": samples, "answers": samples, "whole": [whole(batch, config) for batch in samples]}
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for round_number in range(2 + steps):
        for name in STEPS:
            begin = time.perf_counter()
            stepper.step(name)
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - begin)
    operations = {name: arithmetic(config, stepper.samples[name], name != "ar") for name in STEPS}
    rows: dict[str, dict[str, Any]] = {
        name: {
            "seconds": median(seconds[name]),
            "seconds_all": seconds[name],
            "operations": operations[name],
            "ratio": median(one / other for one, other in zip(seconds[name], seconds["ar"], strict=True)),
            "limit": operations[name] / operations["ar"],
        }
        for name in STEPS
    }
    for row in rows.values():
        row["of_limit"] = row["ratio"] / row["limit"]
    return {
        "device": str(device),
        "model": config.model.name,
        "kernels": stepper.kernels,
        "sequence_length": config.batch.sequence_length,
        "noisy_length": samples[0]["blocks"].shape[1],
        "block_size": config.diffusion.block_size,
        **_used(samples),
        "rows": rows,
        "target": TARGET,
    }


def whole(batch: Samples, config: Config) -> Samples:
    """The same samples with a noisy stream that repeats the clean one, of which answers alone are maskable."""
    layout = StreamLayout.of(batch["documents"][:, :-1], config.diffusion.block_size, two_streams=True)
    assert layout.noisy is not None
    maskable = batch["answers"][:, :-1]
    probability = batch["probability"][:, :1].expand(maskable.shape).contiguous()
    draws = torch.rand(maskable.shape, generator=torch.Generator().manual_seed(1))
    changed = {
        "noisy_tokens": batch["tokens"][:, :-1],
        "blocks": layout.noisy.blocks,
        "begins": layout.noisy.begins,
        "maskable": maskable,
        "probability": probability,
        "masked": maskable & (draws < probability),
    }
    return {**batch, **changed}


def _used(samples: list[Samples]) -> dict[str, Any]:
    """Tokens in use, of all samples of a step, and the fraction that they are of both streams."""
    clean = noisy = total = answers = 0
    for batch in samples:
        for row in range(len(batch["tokens"])):
            layout = used_layout({name: tensor[row : row + 1] for name, tensor in batch.items()}, two_streams=True)
            clean, noisy = clean + layout.length, noisy + layout.noisy_length
            total += batch["documents"].shape[1] - 1 + batch["blocks"].shape[1]
            answers += int(batch["answers"][row].sum())
    return {"clean_tokens": clean, "answer_tokens": answers, "noisy_tokens": noisy, "used": (clean + noisy) / total}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    title = (
        f"{figures['model']}, {figures['kernels']}, on {figures['device']}: {figures['answer_tokens']} of "
        f"{figures['clean_tokens']} tokens are answers"
    )
    table = Table("step", "seconds", "tokens/s", "over ar", "limit", "of limit", title=title)
    for name, row in figures["rows"].items():
        speed = f"{figures['clean_tokens'] / row['seconds']:,.0f}"
        table.add_row(
            name, f"{row['seconds']:.3f}", speed, *(f"{row[key]:.2f}" for key in ("ratio", "limit", "of_limit"))
        )
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(f"{figures['used']:.1%} of both streams are in use; target of the limit: {figures['target']:.2f}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
