"""A damaged checkpoint is recognised and named in one line, and the newest sound one is used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_equality import assert_same_run
from tiny_runs import SHORT, records_of, short_stages
from training_runs import Train

from nld_train.training.checkpoint.manifest import MANIFEST, find_damage

Command = Callable[..., tuple[int, str]]
SHARD = "__0_0.distcp"
# Three steps of each stage, all of them kept.
SETTINGS = (*SHORT, *short_stages(3, 3), "checkpoint.every=1", "checkpoint.keep_last=null")


@pytest.fixture(scope="module")
def never_stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whole"), *SETTINGS)


@pytest.fixture(scope="module")
def five_steps(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("five"), *SETTINGS, "run.max_steps=5")


@pytest.fixture
def stopped(five_steps: Path, tmp_path: Path) -> Path:
    """A run's directory with five checkpoints, to be damaged."""
    return Path(shutil.copytree(five_steps, tmp_path / "run"))


def step(run_directory: Path, number: int) -> Path:
    return run_directory / "checkpoints" / f"step_{number:08d}"


def flip_a_bit(file: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)


def truncate_shard(newest: Path) -> None:
    (newest / SHARD).write_bytes((newest / SHARD).read_bytes()[:-1])


def flip_in_shard(newest: Path) -> None:
    flip_a_bit(newest / SHARD, (newest / SHARD).stat().st_size // 2)


def remove_shard(newest: Path) -> None:
    (newest / SHARD).unlink()


def remove_settings(newest: Path) -> None:
    (newest / "config.yaml").unlink()


def remove_manifest(newest: Path) -> None:
    (newest / MANIFEST).unlink()


def truncate_manifest(newest: Path) -> None:
    (newest / MANIFEST).write_text((newest / MANIFEST).read_text()[:100])


def empty_manifest(newest: Path) -> None:
    (newest / MANIFEST).write_text("[]")


def list_nothing(newest: Path) -> None:
    (newest / MANIFEST).write_text('{"files": {}}')


def half_write(newest: Path) -> None:
    """As after a kill before the renaming."""
    truncate_shard(newest)
    remove_manifest(newest)
    newest.rename(newest.with_name(f"{newest.name}.tmp"))
    (newest.parent / "latest").write_text("step_00000004\n")


def misname_latest(newest: Path) -> None:
    shutil.rmtree(newest)


def lines_about_checkpoints(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if "checkpoint" in line or "error" in line]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_shard, f" is damaged: {SHARD} has "),
        (flip_in_shard, f" is damaged: {SHARD} does not have the content that was written"),
        (remove_shard, f" is damaged: {SHARD} is missing"),
        (remove_settings, " is damaged: config.yaml is missing"),
        (remove_manifest, f" is damaged: {MANIFEST} is missing"),
        pytest.param(truncate_manifest, f" is damaged: {MANIFEST} cannot be read", marks=pytest.mark.long),
        pytest.param(empty_manifest, f" is damaged: {MANIFEST} cannot be read", marks=pytest.mark.long),
        (list_nothing, f" is damaged: {MANIFEST} does not list model.json"),
        (half_write, ".tmp was not written to its end"),
        (misname_latest, " names step_00000005, which does not exist; step_00000004 is used"),
    ],
)
def test_the_newest_sound_one_is_used(
    command: Command, never_stopped: Path, stopped: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(step(stopped, 5))
    status, errors = command(*SETTINGS, f"run.dir={stopped}")
    assert status == 0, errors
    assert len(lines := lines_about_checkpoints(errors)) == 1, errors
    named = stopped / "checkpoints/latest" if damage is misname_latest else f"checkpoint {step(stopped, 5)}"
    assert lines[0].startswith(f"{named}{message}")
    assert_same_run(stopped, never_stopped)
    assert list((stopped / "checkpoints").glob("*.tmp")) == []
    assert all(find_damage(step(stopped, number)) is None for number in range(1, 7))


def test_several_damaged_ones_are_passed_over(command: Command, never_stopped: Path, stopped: Path) -> None:
    """Through the end of the first stage, into it; with `keep_last=1` they displace no sound one."""
    for number, damage in ((3, remove_manifest), (4, remove_shard), (5, truncate_shard)):
        damage(step(stopped, number))
    rules = "checkpoint.keep_last=1"
    status, errors = command(*SETTINGS, rules, f"run.dir={stopped}", "run.max_steps=3", "checkpoint.every=100")
    assert status == 0, errors
    names = [f"step_{number:08d}" for number in (5, 4, 3)]
    assert [name for line in lines_about_checkpoints(errors) for name in names if name in line] == names
    status, errors = command(*SETTINGS, rules, f"run.dir={stopped}")
    assert status == 0, errors
    assert len(lines_about_checkpoints(errors)) == 2
    assert_same_run(stopped, never_stopped)


def test_without_a_sound_one_nothing_is_begun_again(command: Command, stopped: Path) -> None:
    for number in range(1, 6):
        flip_in_shard(step(stopped, number))
    assert_refused(command, stopped, *(f"{step(stopped, number)} is damaged" for number in range(1, 6)))


def test_checkpoints_that_are_gone_are_missed(command: Command, stopped: Path) -> None:
    for number in range(1, 6):
        shutil.rmtree(step(stopped, number))
    assert_refused(command, stopped, "latest names step_00000005, which does not exist")


def assert_refused(command: Command, stopped: Path, *pieces: str) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    status, errors = command(*SETTINGS, f"run.dir={stopped}")
    assert status == 2
    assert len(lines := errors.splitlines()) == 1, errors
    assert lines[0].startswith("error: run.dir: no sound checkpoint is left in ")
    for piece in pieces:
        assert piece in lines[0]
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_run_whose_first_checkpoint_is_unfinished_begins(
    command: Command, never_stopped: Path, tmp_path: Path
) -> None:
    half = tmp_path / "run" / "checkpoints" / "step_00000001.tmp"
    half.mkdir(parents=True)
    (half / SHARD).write_bytes(b"half")
    status, errors = command(*SETTINGS, f"run.dir={tmp_path / 'run'}")
    assert status == 0, errors
    assert lines_about_checkpoints(errors) == [f"checkpoint {half} was not written to its end; it is deleted"]
    assert_same_run(tmp_path / "run", never_stopped)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip_in_shard, SHARD), (remove_manifest, MANIFEST), (misname_latest, "latest names step_00000005")],
)
def test_damaged_starting_weights_are_refused(
    command: Command, stopped: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(step(stopped, 5))
    status, errors = command(*SETTINGS, f"run.dir={tmp_path / 'other'}", f"init.checkpoint={stopped}")
    assert status == 2
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("error: init.checkpoint: ")
    assert message in errors


def test_a_flipped_bit_is_found_wherever_it_is(stopped: Path) -> None:
    """In every file of a checkpoint, at some offsets each; in the manifest at a hundred."""
    newest, generator = step(stopped, 5), random.Random(5)
    for file in sorted(path for path in newest.rglob("*") if path.is_file()):
        for _ in range(100 if file.name == MANIFEST else 3):
            offset, bit = generator.randrange(file.stat().st_size), generator.randrange(8)
            flip_a_bit(file, offset, bit)
            found = find_damage(newest)
            flip_a_bit(file, offset, bit)
            assert found is not None, f"{file.name}, byte {offset}, bit {bit}"
            assert file.name == MANIFEST or file.name in found
    assert find_damage(newest) is None
    assert records_of(stopped)[-1]["step"] == 5
