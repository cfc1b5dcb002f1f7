"""Parts of the project on the pretended device (`pretended/__init__.py`), each in a process of the fork server.

By hand, from the root of the project: a short run through AR and joint steps, validation and checkpoints, with what the
host and the device did to each other in each part of it:

    python tests/rehearsal/rehearsals.py [KEY=VALUE ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(folder) for folder in (Path(__file__).parent, *Path(__file__).parents[1:3])]

from forked import run_forked
from tiny_runs import SHORT, TINY_MODEL, composed, data_overrides, freeze_libraries, records_of, short_stages, undrawn

# Two micro-batches in a step, so that what is done once per step is told from what is done for each.
MODEL = (*TINY_MODEL, *SHORT, "batch.micro_size=2")
Section = dict[str, Any]


def rehearsed(part: str, *arguments: Any, timeout: float = 240) -> Any:
    """What a part returns, which a process of its own runs; fails the test where that fails."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = ["call", "rehearsals", "main", json.dumps([part, str(result), arguments])]
        done = run_forked(words, timeout)
        assert done.status == 0, done.output[-8000:]
        return json.loads(result.read_text())


def main(part: str, result: str, arguments: list[Any]) -> int:
    """In the forked process."""
    import torch

    torch.set_num_threads(1)
    freeze_libraries()
    Path(result).write_text(json.dumps(PARTS[part](*arguments)))
    return 0


def run(device: str, directory: str, overrides: list[str]) -> dict[str, Any]:
    """A run, new or resumed, on the CPU or on the pretended device.

    Returns:
        `records`, of `metrics.jsonl`, and `sections`, the figures of each part of the run in order.
    """
    from nld_train.config.validate import validate
    from nld_train.training.loop import run as loop

    sections: list[Section] = []
    if device == "cuda":
        _watch_run(sections)
    config = composed(f"run.dir={directory}", *overrides, f"execution.device={device}")
    validate(config, world_size=1)
    with undrawn():
        assert loop.train(config) == 0
    return {"records": records_of(Path(directory)), "sections": sections}


def _watch_run(sections: list[Section]) -> None:
    """Begins to pretend; each part of a run becomes a section, and what is between two parts `loop`."""
    from pretended import install

    from nld_train.evaluation.decoding_hook import DecodingHook
    from nld_train.training.checkpoint import load as checkpoint
    from nld_train.training.checkpoint.save import CheckpointWriter
    from nld_train.training.hooks.validation import ValidationHook
    from nld_train.training.loop.run import Run

    install()
    parts = (
        (Run, "_begin_stage"),
        (Run, "_step"),
        (DecodingHook, "run"),
        (ValidationHook, "run"),
        (CheckpointWriter, "begin"),
    )
    names = ("begin_stage", "step", "decoding", "validation", "save")
    for (owner, name), section in zip((*parts, (checkpoint, "load")), (*names, "load"), strict=True):
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


def decode(device: str, overrides: list[str]) -> dict[str, Any]:
    """Decodes prompts in every mode: the texts of prompts of unequal length, and the section of one prompt alone."""
    from nld_train.decoding import DecodeOptions, Threshold
    from nld_train.decoding.algorithms.decode import decode as continued

    if device == "cuda":
        from pretended import LEDGER, install

        install()
    prompts = [[5, 9, 33, 12, 60], [7, 8], [44, 21, 13, 9, 10, 11, 12, 30, 31]]
    options = DecodeOptions(max_new_tokens=12, block_length=4)
    found: dict[str, Any] = {}
    with tiny_engine(device, overrides) as engine:
        for mode in ("ar", "diffusion", "linear", "quadratic"):
            policy = Threshold(0.5) if mode == "diffusion" else None
            result = continued(engine, prompts, mode, options, policy, batch_size=2)
            found[mode] = {"texts": result.token_ids}
            if device == "cuda":
                LEDGER.take()
                alone = continued(engine, prompts[:1], mode, options, policy)
                found[mode] |= {**_section(mode, LEDGER.take()), "forwards": alone.forwards + alone.prefill}
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


def _device_rules() -> dict[str, str]:
    import device_rules

    return device_rules.outcomes()


PARTS: dict[str, Callable[..., Any]] = {
    "run": run,
    "decode": decode,
    "benchmarks": benchmarks,
    "device_rules": _device_rules,
}


def _by_hand(overrides: list[str]) -> None:
    from tiny_runs import write_token_set

    with TemporaryDirectory() as folder:
        data = data_overrides(write_token_set(Path(folder) / "tokens", seed=1))
        hooks = ("validation.every=2", "validation.samples=4", "checkpoint.every=2")
        words = [*MODEL, *data, *short_stages(2, 2), *hooks, *overrides]
        found = run("cuda", f"{folder}/run", words)
    for section in found["sections"]:
        figures = ", ".join(f"{section[key]} {key}" for key in ("syncs", "copies", "slow_copies", "operations"))
        print(f"=== {section['name']}: {figures}", *section["lines"], sep="\n")
    for record in found["records"]:
        print(record["step"], record["stage"], record["loss"], record["grad_norm"])


if __name__ == "__main__":
    _by_hand(sys.argv[1:])
