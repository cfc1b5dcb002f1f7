"""Kinds of stages, attention, recomputation and overlap on the pretended device, beside the CPU's losses."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_sets import random_conversations, write_chat_manifest, write_chat_set
from rehearsals import MODEL, Run, rehearsed
from test_training import RELATIVE, assert_same_losses
from tiny_runs import SHORT_STEP_TOKENS, data_overrides, short_stages, write_token_set

# Of each case: what is changed. On the CPU attention is its own where it cannot train with that of the case.
CASES: dict[str, tuple[str, ...]] = {
    "full recomputation": ("execution.recompute=full",),
    "selective recomputation": ("execution.recompute=selective", "execution.recompute_modules=[core_attn,mlp]"),
    "split attention": ("execution.attention=split",),
    "decomposed attention": ("execution.attention=decomposed",),
    "dense attention": ("execution.attention=dense",),
    "chunked attention": ("execution.attention=chunked",),
    "overlap": (
        "parallel.overlap_grad_reduce=true",
        "parallel.overlap_param_gather=true",
        "validation.every=1",
        "checkpoint.every=1",
    ),
    "lora": ("stages.joint.lora={rank: 3, lora_alpha: 6}",),
    "drafter": (
        "stages=[quickstart,drafter]",
        f"stages.drafter.tokens={2 * SHORT_STEP_TOKENS}",
        "stages.drafter.adapter.rank=3",
        "stages.drafter.adapter.block_size=5",
    ),
    "sft": ("stages=[quickstart,sft]", f"stages.sft.tokens={2 * SHORT_STEP_TOKENS}", "stages.sft.noisy_length=28"),
}


def write_conversations(folder: Path) -> tuple[str, ...]:
    """Training and held-out conversations with the ids of the tiny model; returns the overrides of their stage."""
    for name, seed in (("train", 3), ("held-out", 4)):
        conversations = random_conversations(seed, 60, longest=5, largest_id=66)
        prefix = write_chat_set(folder / name, conversations)
        write_chat_manifest(prefix, conversations, vocabulary_size=67)
    sets = (("train", "train"), ("validation", "held-out"))
    return tuple(f"stages.sft.{key}=[{{prefix: {folder}/{name}, weight: 1}}]" for key, name in sets)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("data")
    prefix = write_token_set(folder / "text", seed=1)
    common = [*MODEL, *data_overrides(prefix), *short_stages(1, 2), "validation.every=9", "validation.samples=4"]
    found = {name: [*common, *changes] for name, changes in CASES.items()}
    found["sft"] += write_conversations(folder)
    return found


@pytest.fixture(scope="module")
def on_cpu(cases: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    words = {name: [word for word in each if word != "execution.attention=split"] for name, each in cases.items()}
    found: dict[str, Run] = rehearsed("runs", "cpu", str(tmp_path_factory.mktemp("cpu")), words)
    return found


@pytest.fixture(scope="module")
def rehearsal(cases: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    found: dict[str, Run] = rehearsed("runs", "cuda", str(tmp_path_factory.mktemp("cuda")), cases)
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_cpu(name: str, rehearsal: dict[str, Run], on_cpu: dict[str, Run]) -> None:
    # Which drafts of a drafter stage are scored follows from the largest logits, of which rounding changes a few.
    assert_same_losses(rehearsal[name], on_cpu[name], (2 if name == "drafter" else 1) * RELATIVE)


@pytest.mark.long
def test_a_stopped_run_goes_on_as_if_it_had_not_been(cases: dict[str, list[str]], tmp_path: Path) -> None:
    whole, stopped = rehearsed("resumed", "cuda", str(tmp_path), cases["overlap"], 2)
    assert len(whole) == 3
    for step, other in zip(stopped, whole, strict=True):
        assert (step["loss"], step["grad_norm"]) == (other["loss"], other["grad_norm"])


@pytest.mark.long
@pytest.mark.parametrize("layout", ["parallel.tensor=2", "parallel.pipeline=2", "parallel.context=2", "overlap"])
def test_two_processes(layout: str, cases: dict[str, list[str]], on_cpu: dict[str, Run], tmp_path: Path) -> None:
    """NCCL refuses tensors that are not contiguous, and tensors of the CPU."""
    words = cases["overlap"] if layout == "overlap" else [*cases["full recomputation"], layout]
    found: dict[str, Run] = rehearsed("runs", "cuda", str(tmp_path), {"run": words}, processes=2)
    assert_same_losses(found["run"], on_cpu["full recomputation"])
