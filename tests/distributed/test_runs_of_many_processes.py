"""Whole runs under torchrun: going on under the same and under other layouts, and worlds that do not fit."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forked import Finished, run_ranks
from parity_cases import conversation_overrides
from tiny_runs import (
    STEP_TOKENS,
    TINY_MODEL,
    composed,
    data_overrides,
    newest_checkpoint,
    records_of,
    saved_tensors,
    train_here,
    two_stages,
)

from nld_train.config.load import config_to_yaml
from nld_train.model.adapter_files import DRAFTER_DIRECTORY, LORA_DIRECTORY, read_tensors

STAGE_STEPS = 5
STEPS = 2 * STAGE_STEPS
WORKER = Path(__file__).with_name("runs_worker.py")
LOSSES = ("loss", "ar_loss", "diffusion_loss", "grad_norm")
TP2_PP2 = ("parallel.tensor=2", "parallel.pipeline=2")
DP2 = ()
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
CP2 = ("parallel.context=2",)
PP2_VIRTUAL = ("parallel.pipeline=2", "parallel.virtual_pipeline=2")
# A stage alone that trains the drafter adapter on another run's weights.
DRAFTER_STEPS = 4
DRAFTER = (
    "stages=drafter",
    f"stages.drafter.tokens={DRAFTER_STEPS * STEP_TOKENS}",
    "stages.drafter.adapter.rank=3",
    "stages.drafter.adapter.block_size=5",
    "stages.drafter.schedule.learning_rate=0.001",
    "stages.drafter.schedule.warmup_fraction=0",
)
# Under one layout: whole, and stopped inside each stage and at their border.
STOPS = (2, STAGE_STEPS, STAGE_STEPS + 3, None)
# A stage alone that is trained on conversations, stopped within its first epoch.
SFT_STEPS = 4
# Of two processes without stages of the model: half the layers, and one micro-batch for a step of each.
SMALL = ("model.num_hidden_layers=2", "batch.micro_size=4")


@pytest.fixture(scope="module")
def settings(token_set: str) -> tuple[str, ...]:
    return (
        *TINY_MODEL,
        *data_overrides(token_set),
        *two_stages(STAGE_STEPS, STAGE_STEPS),
        f"validation.every={STAGE_STEPS}",
    )


def losses_of(directory: Path) -> list[list[float | None]]:
    return [[record[name] for name in LOSSES] for record in records_of(directory)]


@pytest.fixture(scope="module")
def drafter_settings(token_set: str, whole: Path) -> tuple[str, ...]:
    return (*TINY_MODEL, *data_overrides(token_set), *DRAFTER, f"init.checkpoint={whole}")


@pytest.fixture(scope="module")
def sft_settings(token_set: str) -> tuple[str, ...]:
    return (
        *TINY_MODEL,
        *data_overrides(token_set),
        *conversation_overrides(token_set),
        f"stages.sft.tokens={SFT_STEPS * STEP_TOKENS}",
        "validation.every=2",
        *SMALL,
    )


@pytest.fixture(scope="module")
def lora_settings(token_set: str) -> tuple[str, ...]:
    """Of an sft stage that trains a LoRA, with as many steps as the drafter stage."""
    return (
        *TINY_MODEL,
        *data_overrides(token_set),
        *conversation_overrides(token_set),
        f"stages.sft.tokens={DRAFTER_STEPS * STEP_TOKENS}",
        "stages.sft.lora={rank: 3, lora_alpha: 6}",
        "stages.sft.schedule.learning_rate=0.01",
    )


@dataclass(frozen=True)
class Start:
    """One start of a run, to a step; with settings of its own or those of the runs around it."""

    name: str
    layout: tuple[str, ...]
    limit: int | None
    settings: tuple[str, ...] | None = None

    def overrides(self, folder: Path) -> list[str]:
        """Of the command line."""
        limit = "null" if self.limit is None else str(self.limit)
        return [f"run.dir={folder / self.name}", f"run.max_steps={limit}", *self.layout]


def under_one_layout(name: str, layout: tuple[str, ...]) -> list[Start]:
    return [Start(f"{name}-whole", layout, None), *(Start(f"{name}-stopped", layout, stop) for stop in STOPS)]


def start_all(processes: int, starts: Sequence[Start], settings: Sequence[str], folder: Path) -> Finished:
    """Runs one after another in one group of processes."""
    paths = []
    for number, start in enumerate(starts):
        paths.append(folder / f"{processes}-{number}.yaml")
        paths[-1].write_text(config_to_yaml(composed(*(start.settings or settings), *start.overrides(folder))))
    done = run_ranks(processes, [str(WORKER), *map(str, paths)], timeout=550)
    assert done.status == 0, done.output
    return done


@pytest.fixture(scope="module")
def whole(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that was never stopped."""
    return train_here(tmp_path_factory.mktemp("single") / "whole", *settings)


@pytest.fixture(scope="module")
def small_whole(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a smaller model."""
    return train_here(tmp_path_factory.mktemp("single") / "small", *settings, *SMALL)


@pytest.fixture(scope="module")
def two(settings: tuple[str, ...], sft_settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes: data-parallel, one of them from a damaged checkpoint of one process; context-parallel; and
    of fine-tuning, both one after the other."""
    folder = tmp_path_factory.mktemp("two")
    settings = (*settings, *SMALL, "checkpoint.keep_last=null")
    train_here(folder / "damaged", *settings, "run.max_steps=3", "checkpoint.every=1")
    shard = folder / "damaged" / "checkpoints" / "step_00000003" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-9] + b"different")
    train_here(folder / "context", *settings, "run.max_steps=2")
    train_here(folder / "sft", *sft_settings, "run.max_steps=1")
    starts = [
        *under_one_layout("two", DP2),
        *(Start("damaged", DP2, 6), Start("context", CP2, STAGE_STEPS + 3)),
        *(Start("overlap", OVERLAP, limit) for limit in (STOPS[0], None)),
        *(Start("sft", layout, limit, sft_settings) for layout, limit in ((DP2, 2), (CP2, 3))),
    ]
    done = start_all(2, starts, settings, folder)
    train_here(folder / "context", *settings)
    train_here(folder / "sft", *sft_settings)
    (folder / "said").write_text(done.output)
    return folder


@pytest.fixture(scope="module")
def moves(
    settings: tuple[str, ...],
    drafter_settings: tuple[str, ...],
    lora_settings: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Runs under several layouts. One group of four processes and one of two make all that needs as many."""
    folder = tmp_path_factory.mktemp("moves")
    border = STAGE_STEPS
    for name, limit in (("ar", 1), ("joint", border + 1)):
        train_here(folder / name, *settings, f"run.max_steps={limit}")
    fours = [
        *(Start("ar", TP2_PP2, 2), Start("joint", TP2_PP2, border + 2), Start("drafter", TP2_PP2, 1, drafter_settings)),
        Start("lora", TP2_PP2, 1, lora_settings),
        *under_one_layout("four", TP2_PP2),
    ]
    start_all(4, fours, settings, folder)
    twos = [
        *(Start("ar", DP2, 3), Start("ar", PP2_VIRTUAL, 4)),
        *(Start("joint", DP2, border + 3), Start("joint", PP2_VIRTUAL, border + 4)),
        *(Start("drafter", DP2, 2, drafter_settings), Start("drafter", PP2_VIRTUAL, 3, drafter_settings)),
        *(Start("lora", DP2, 2, lora_settings), Start("lora", PP2_VIRTUAL, 3, lora_settings)),
        *under_one_layout("virtual", PP2_VIRTUAL),
    ]
    start_all(2, twos, settings, folder)
    for name in ("ar", "joint"):
        train_here(folder / name, *settings, "batch.micro_size=4", "data.workers=1")
    train_here(folder / "drafter", *drafter_settings, "batch.micro_size=4")
    train_here(folder / "lora", *lora_settings, "batch.micro_size=4")
    return folder


def test_two_data_parallel_processes_stop_and_go_on(two: Path) -> None:
    assert_same_bits(two / "two-stopped", two / "two-whole")


def test_ranks_are_measured_at_logged_steps(two: Path) -> None:
    """Every ten steps, over both processes, which are on this machine."""
    records = records_of(two / "two-whole")
    assert [record["step"] for record in records if "ranks" in record] == [10]
    for times in records[-1]["ranks"].values():
        assert 0 <= times["min"] <= times["median"] <= times["p90"] == times["max"]
        assert times["rank"] in (0, 1)
        assert times["node"] == socket.gethostname()
    passes, step = records[-1]["ranks"]["passes"], records[-1]["ranks"]["step"]
    assert 0 < passes["max"] < step["max"]


def test_a_checkpoint_has_the_weights_of_its_own_step(two: Path) -> None:
    """Of all ranks, also where they would arrive during the next forward pass, which this save does not wait for."""
    step = f"checkpoints/step_{STOPS[0]:08d}"
    found, expected = (saved_tensors(two / name / step) for name in ("overlap", "two-stopped"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert_same_bits(two / "overlap", two / "two-whole")


def test_a_run_goes_on_with_and_without_context_parallelism(two: Path, small_whole: Path) -> None:
    """One process, two that share each sample, and one again: weights, optimizer state, validation."""
    assert_same_losses(two / "context", small_whole, STEPS)


def test_fine_tuning_goes_on_under_other_layouts(two: Path, sft_settings: tuple[str, ...], tmp_path: Path) -> None:
    """One process, two with samples of their own, two that share each sample, and one again, a step each."""
    assert_same_losses(two / "sft", train_here(tmp_path / "whole", *sft_settings), SFT_STEPS)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["virtual", "four"])
def test_under_the_same_layout_not_a_bit_differs(moves: Path, layout: str) -> None:
    assert_same_bits(moves / f"{layout}-stopped", moves / f"{layout}-whole")


@pytest.mark.long
@pytest.mark.parametrize("stage", ["ar", "joint"])
def test_a_run_goes_on_under_other_layouts(moves: Path, whole: Path, stage: str) -> None:
    """One process, TP2 x PP2, DP2, two virtual stages on each of two, and one process again with other micro-batches,
    a step or two each within the stage: with weights and optimizer state, as one process alone."""
    assert_same_losses(moves / stage, whole, STEPS)


@pytest.mark.long
def test_a_drafter_stage_goes_on_under_other_layouts(
    moves: Path, drafter_settings: tuple[str, ...], tmp_path: Path
) -> None:
    """TP2 x PP2, DP2, two virtual stages on each of two, one process: a step each, and the adapter is the same."""
    expected = train_here(tmp_path / "drafter", *drafter_settings)
    assert [record["step"] for record in records_of(moves / "drafter")] == list(range(1, DRAFTER_STEPS + 1))
    for one, other in zip(records_of(moves / "drafter"), records_of(expected), strict=True):
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), (one["step"], name)
    found, wanted = (read_tensors(newest_checkpoint(run) / DRAFTER_DIRECTORY) for run in (moves / "drafter", expected))
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_a_stage_with_a_lora_goes_on_under_other_layouts(
    moves: Path, lora_settings: tuple[str, ...], tmp_path: Path
) -> None:
    """TP2 x PP2, DP2, two virtual stages on each of two, one process: a step each, and the LoRA is the same."""
    expected = train_here(tmp_path / "lora", *lora_settings)
    assert_same_losses(moves / "lora", expected, DRAFTER_STEPS)
    found, wanted = (read_tensors(newest_checkpoint(run) / LORA_DIRECTORY) for run in (moves / "lora", expected))
    assert found.keys() == wanted.keys()
    assert all(tensor.any() for tensor in wanted.values())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)


def test_a_damaged_checkpoint_is_passed_over_by_all_ranks(two: Path, small_whole: Path) -> None:
    """Each rank reads a share of the files; one of them finds it, and rank 0 says so."""
    lines = [line for line in (two / "said").read_text().splitlines() if "is damaged" in line]
    path = two / "damaged" / "checkpoints" / "step_00000003"
    assert lines == [
        f"checkpoint {path} is damaged: __0_0.distcp does not have the content that was written (checksum); "
        "it is skipped"
    ]
    assert_same_losses(two / "damaged", small_whole, 6)


def assert_same_bits(found: Path, expected: Path) -> None:
    tensors, others = saved_tensors(newest_checkpoint(found)), saved_tensors(newest_checkpoint(expected))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert losses_of(found) == losses_of(expected)
    assert [record["step"] for record in records_of(found)] == list(range(1, STEPS + 1))


def assert_same_losses(found: Path, expected: Path, steps: int) -> None:
    assert [record["step"] for record in records_of(found)] == list(range(1, steps + 1))
    for one, other in zip(records_of(found), records_of(expected)[:steps], strict=True):
        numbers = {name: other[name] for name in LOSSES if other[name] is not None}
        assert {name: one[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)
        if "validation" in other:
            assert one["validation"]["ar_loss"] == pytest.approx(other["validation"]["ar_loss"], rel=1e-5)
            assert one["validation"]["diffusion_loss"] == pytest.approx(other["validation"]["diffusion_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("processes", "override", "said"),
    [
        (3, "parallel.tensor=2", "error: world size=3: must be a multiple of 2"),
        pytest.param(
            3, "parallel.tensor=1", "error: batch.global_size=8: must be a multiple of 6", marks=pytest.mark.long
        ),
    ],
)
def test_a_world_that_does_not_fit(
    settings: tuple[str, ...], tmp_path: Path, processes: int, override: str, said: str
) -> None:
    done = run_ranks(
        processes, ["-m", "nld_train.train", *settings, override, f"run.dir={tmp_path / 'run'}"], timeout=60
    )
    assert done.status != 0
    errors = [line for line in done.output.splitlines() if "error" in line and not line.startswith(("E", "W"))]
    assert len(errors) == 1, done.output
    assert errors[0].startswith(said)
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()
