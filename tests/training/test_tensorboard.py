"""`logging.tensorboard`: every number of every step, once, however often the run was continued."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import SHORT, TINY_MODEL, composed, records_of, short_stages, train_here

from nld_train.errors import UserError
from nld_train.training.loop.preflight import check_paths
from nld_train.training.metrics import tensorboard_log
from nld_train.training.metrics.metric import numbers
from nld_train.training.metrics.tensorboard_log import TensorboardLog

ON = "logging.tensorboard=true"


class Writer:
    """What the log asks of torch's writer."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: dict[tuple[str, int], float] = {}
        self.images: list[tuple[int, ...]] = []
        self.closed = False

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if value == 13:
            raise OSError("no space left")
        self.scalars[tag, step] = value

    def add_image(self, tag: str, image: Any, dataformats: str) -> None:
        assert (tag, dataformats) == ("report", "HWC")
        self.images.append(image.shape)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """The writers that are made, of a package that is not there."""
    made: list[Writer] = []

    def make(folder: str, purge_step: int | None) -> Writer:
        made.append(Writer(folder, purge_step))
        return made[-1]

    module = ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", make, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tensorboard_log, "find_spec", lambda _: True)
    return made


def test_numbers_at_any_depth_are_written(writers: list[Writer], tmp_path: Path) -> None:
    import matplotlib.image
    import numpy as np

    log = TensorboardLog(composed(f"run.dir={tmp_path}", ON))
    log.write({"step": 3, "stage": "ar", "loss": 2.5, "mfu": None, "ranks": {"passes": {"max": 1.5, "node": "a"}}})
    matplotlib.image.imsave(tmp_path / "report.png", np.zeros((4, 6, 4)))
    log.finish({}, tmp_path / "report.png")
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (f"{tmp_path}/tensorboard", None)
    assert writer.scalars == {("step", 3): 3, ("loss", 3): 2.5, ("ranks/passes/max", 3): 1.5}
    assert writer.images == [(4, 6, 3)]
    assert writer.closed


def test_a_failure_is_one_warning(writers: list[Writer], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = TensorboardLog(composed(f"run.dir={tmp_path}", ON))
    for loss in (13, 2):
        log.write({"step": 1, "loss": loss})
    log.finish()
    assert ("loss", 1) not in writers[0].scalars
    assert capfd.readouterr().err == "warning: TensorBoard fails (no space left); the run continues without it\n"


def test_without_the_package_the_run_is_refused(monkeypatch: pytest.MonkeyPatch, data: tuple[str, ...]) -> None:
    monkeypatch.setattr(tensorboard_log, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^logging.tensorboard=true: needs the package tensorboard; install nld-train"):
        check_paths(composed(*data, ON))
    check_paths(composed(*data))


def test_a_run_writes_each_step_once(request: pytest.FixtureRequest, data: tuple[str, ...], tmp_path: Path) -> None:
    """Stopped after step 1 with a checkpoint of it, continued to step 2."""
    real = find_spec("tensorboard") is not None
    writers: list[Writer] = [] if real else request.getfixturevalue("writers")
    words = (*data, *TINY_MODEL, *SHORT, *short_stages(2, 1), "run.stages=[ar]", ON)
    train_here(tmp_path, *words, "run.max_steps=1")
    train_here(tmp_path, *words, drawn=True)
    records = records_of(tmp_path)
    if not real:
        assert [writer.purge_step for writer in writers] == [None, 2]
        found = writers[0].scalars | writers[1].scalars
    else:
        found = scalars_of(tmp_path / "tensorboard")
    expected = {
        (tag, record["step"]): number
        for record in records
        for name, value in record.items()
        for tag, number in numbers(name, value).items()
    }
    assert found.keys() == expected.keys()
    for key, number in expected.items():
        assert found[key] == pytest.approx(number, rel=1e-6), key


def scalars_of(folder: Path) -> dict[tuple[str, int], float]:
    """Every scalar in the event files of a folder, as TensorBoard shows it; none of them twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found: dict[tuple[str, int], float] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert (tag, event.step) not in found
            found[tag, event.step] = event.value
    assert events.Tags()["images"] == ["report"]
    return found
