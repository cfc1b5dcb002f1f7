"""Parts of the project on the pretended device (`pretended/__init__.py`), each in a process of the fork server.

By hand, from the root of the project: a short run through AR and joint steps, validation and checkpoints, with what the
host and the device did to each other in each part of it:

    python tests/rehearsal/rehearsals.py [KEY=VALUE ...]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(folder) for folder in (Path(__file__).parent, *Path(__file__).parents[1:3])]

from forked import run_forked, run_ranks
from tiny_runs import SHORT, TINY_MODEL, composed, data_overrides, freeze_libraries, records_of, short_stages, undrawn

# Two micro-batches in a step, so that what is done once per step is told from what is done for each.
MODEL = (*TINY_MODEL, *SHORT, "batch.micro_size=2")
Section = dict[str, Any]
Run = dict[str, Any]
FIGURES = ("syncs", "copies", "slow_copies", "operations")


def rehearsed(part: str, *arguments: Any, processes: int = 1, timeout: float = 240) -> Any:
    """What a part returns on rank 0, in a process of its own or several; fails the test where one of them fails."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = ["call", "rehearsals", "main", json.dumps([part, str(result), arguments])]
        done = run_forked(words, timeout) if processes == 1 else run_ranks(processes, words, timeout)
        assert done.status == 0, done.output[-8000:]
        return json.loads(result.read_text())


def main(part: str, result: str, arguments: list[Any]) -> int:
    """In the forked process."""
    import torch

    torch.set_num_threads(1)
    freeze_libraries()
    found = PARTS[part](*arguments)
    if os.environ.get("RANK", "0") == "0":
        Path(result).write_text(json.dumps(found))
    return 0


def runs(device: str, folder: str, cases: dict[str, list[str]]) -> dict[str, Run]:
    """Runs by name, one after another in this process, each in a folder of its own.

    Returns:
        Of each: `records`, of `metrics.jsonl`; and `sections`, the figures of the parts of the run in order.
    """
    sections: list[Section] = []
    if device == "cuda":
        _watch_runs(sections)
    found = {}
    for name, overrides in cases.items():
        sections.clear()
        train(device, f"{folder}/{name}", overrides)
        found[name] = {"records": records_of(Path(folder, name)), "sections": list(sections)}
    return found


def resumed(device: str, folder: str, overrides: list[str], stop: int) -> tuple[list[Section], list[Section]]:
    """Records of a run in one piece, and of one that is stopped after so many steps and continued."""
    whole = runs(device, folder, {"whole": overrides})
    train(device, f"{folder}/stopped", [*overrides, f"run.max_steps={stop}"])
    train(device, f"{folder}/stopped", overrides)
    return whole["whole"]["records"], records_of(Path(folder, "stopped"))


def train(device: str, directory: str, overrides: list[str]) -> None:
    """Trains, or continues a run."""
    from nld_train.config.validate import validate
    from nld_train.processes import world_size
    from nld_train.training.loop import run as loop

    config = composed(f"run.dir={directory}", *overrides, f"execution.device={device}")
    validate(config, world_size=world_size())
    with undrawn():
        assert loop.train(config) == 0


def _watch_runs(sections: list[Section]) -> None:
    """Begins to pretend; each part of a run becomes a section, and what is between two parts `loop`."""
    from pretended import install

    from nld_train.evaluation.decoding_hook import DecodingHook
    from nld_train.training.checkpoint import load as checkpoint
    from nld_train.training.checkpoint.save import CheckpointWriter
    from nld_train.training.hooks.validation import ValidationHook
    from nld_train.training.loop.run import Run

    install()
    watched: tuple[tuple[Any, str, str], ...] = (
        (Run, "_begin_stage", "begin_stage"),
        (Run, "_step", "step"),
        (DecodingHook, "run", "decoding"),
        (ValidationHook, "run", "validation"),
        (CheckpointWriter, "begin", "save"),
        (checkpoint, "load", "load"),
    )
    for owner, name, section in watched:
        setattr(owner, name, _watched(getattr(owner, name), section, sections))


def _watched(function: Callable[..., Any], name: str, sections: list[Section]) -> Callable[..., Any]:
    from pretended import LEDGER

    def watched(*arguments: Any, **named: Any) -> Any:
        sections.append(_section("loop", LEDGER.take()))
        try:
            return function(*arguments, **named)
        finally:
            sections.append(_section(name, LEDGER.take()))

    return watched


def _section(name: str, report: Any) -> Section:
    operations = sum(report.operations.values())
    return {"name": name, **report.figures(), "operations": operations, "lines": report.lines()}


@contextmanager
def tiny_engine(device: str, overrides: list[str]) -> Iterator[Any]:
    """A decode engine over a tiny model with the same weights on every device."""
    from nld_train.decoding.engines.megatron_engine import MegatronEngine
    from nld_train.model.build import build_model, transformer_config
    from nld_train.model.initialize import initialize
    from nld_train.model.rotary import RotaryEmbedding
    from nld_train.training.loop.parallel import parallel_groups

    config = composed(*MODEL, f"execution.device={device}", *overrides)
    with parallel_groups(config) as place:
        chunks = build_model(config, transformer_config(config, place), place)
        initialize(chunks, config.model, 0)
        with MegatronEngine(chunks, config.model, RotaryEmbedding(config.model, place)).decoding() as engine:
            yield engine


def decode(device: str, precisions: list[str]) -> dict[str, dict[str, Any]]:
    """Decodes prompts in every mode, by precision and mode: the texts of prompts of unequal length, and the section of
    one prompt alone."""
    if device == "cuda":
        from pretended import install

        install()
    found = {}
    for precision in precisions:
        with tiny_engine(device, [f"execution.precision={precision}"]) as engine:
            found[precision] = {
                mode: _decoded(engine, mode, device) for mode in ("ar", "diffusion", "linear", "quadratic")
            }
    return found


def benchmarks(commands: list[list[str]]) -> dict[str, Any]:
    """Runs commands `benchmarks.NAME ARGUMENTS`; returns the figures of each result by its name."""
    from importlib import import_module

    import torch
    from pretended import install

    install()
    generator = torch.Generator
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # The command that one of them starts would see no device.
        patch.setattr("benchmarks.mfu.subprocess", SimpleNamespace(run=_in_this_process))
        # One of the device needs CUDA's library.
        patch.setattr("torch.Generator", lambda device="cpu": generator())
        for module, *words in commands:
            import_module(module).main([*words, "--results", folder])
        files = Path(folder).glob("*.json")
        return {path.stem: json.loads(path.read_text())["figures"] for path in files}


def _in_this_process(command: list[str], **_: Any) -> Any:
    """As `subprocess.run` of `python -m MODULE ARGUMENTS`."""
    from importlib import import_module

    import_module(command[2]).main(command[3:])
    return SimpleNamespace(returncode=0, stderr="")


def _decoded(engine: Any, mode: Any, device: str) -> dict[str, Any]:
    from nld_train.decoding import DecodeOptions, Threshold
    from nld_train.decoding.algorithms.decode import decode as continued

    prompts = [[5, 9, 33, 12, 60], [7, 8], [44, 21, 13, 9, 10, 11, 12, 30, 31]]
    options = DecodeOptions(max_new_tokens=12, block_length=4)
    policy = Threshold(0.5) if mode == "diffusion" else None
    found = {"texts": continued(engine, prompts, mode, options, policy, batch_size=2).token_ids}
    if device == "cpu":
        return found
    from pretended import LEDGER

    LEDGER.take()
    alone = continued(engine, prompts[:1], mode, options, policy)
    section = _section(mode, LEDGER.take())
    longer = continued(engine, prompts[:1], mode, replace(options, max_new_tokens=24), policy)
    more, cycles = _section(mode, LEDGER.take()), _cycles(mode, longer) - _cycles(mode, alone)
    return {
        **found,
        **section,
        "forwards": alone.forwards + alone.prefill,
        "graph_share": alone.graph_forwards / alone.forwards,
        "of_a_cycle": {figure: (more[figure] - section[figure]) / cycles for figure in FIGURES},
        "lines_of_cycles": more["lines"],
    }


def _cycles(mode: str, result: Any) -> int:
    """Of the one sequence; linear has a drafting and a verifying forward in each."""
    return len(result.accepted[0]) if mode == "linear" else int(result.forwards)


def rules() -> dict[str, str]:
    """Outcomes of `device_rules`."""
    import device_rules

    return device_rules.outcomes()


def forgotten_copies(folder: str, overrides: list[str]) -> dict[str, str]:
    """For each caller in a run that copies to the device by `Tensor.to`: how the run ends when it does not copy."""
    import forgetting

    return forgetting.outcomes(folder, overrides)


PARTS: dict[str, Callable[..., Any]] = {
    "runs": runs,
    "resumed": resumed,
    "decode": decode,
    "rules": rules,
    "forgotten_copies": forgotten_copies,
    "benchmarks": benchmarks,
}


def _by_hand(overrides: list[str]) -> None:
    from tiny_runs import write_token_set

    with TemporaryDirectory() as folder:
        data = data_overrides(write_token_set(Path(folder) / "tokens", seed=1))
        hooks = ("validation.every=2", "validation.samples=4", "checkpoint.every=2")
        (found,) = runs("cuda", folder, {"run": [*MODEL, *data, *short_stages(2, 2), *hooks, *overrides]}).values()
    for section in found["sections"]:
        figures = ", ".join(f"{section[key]} {key}" for key in ("syncs", "copies", "slow_copies", "operations"))
        print(f"=== {section['name']}: {figures}", *section["lines"], sep="\n")
    for record in found["records"]:
        print(record["step"], record["stage"], record["loss"], record["grad_norm"])


if __name__ == "__main__":
    _by_hand(sys.argv[1:])
