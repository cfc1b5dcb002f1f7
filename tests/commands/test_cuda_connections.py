"""`CUDA_DEVICE_MAX_CONNECTIONS` is set by layout and device before CUDA starts; what a user has set stays."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest
from tiny_runs import composed

from nld_train import cuda_connections
from nld_train.commands import train
from nld_train.cuda_connections import VARIABLE, compute_capability, set_connections

HOPPER, BLACKWELL = (9, 0), (10, 0)
TENSOR, CONTEXT = "parallel.tensor=2", "parallel.context=2"


class Library:
    """NVML, as far as it is asked; a status other than 0 is an error."""

    def __init__(self, found: tuple[int, int] | None) -> None:
        self.found = found
        self.open = False

    def nvmlInit_v2(self) -> int:
        self.open = True
        return 0

    def nvmlShutdown(self) -> int:
        self.open = False
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:
        assert self.open
        assert index.value == 0
        device._obj.value = 7
        return 0 if self.found else 6

    def nvmlDeviceGetCudaComputeCapability(self, device: ctypes.c_void_p, major: Any, minor: Any) -> int:
        assert self.open
        assert device.value == 7
        assert self.found is not None
        major._obj.value, minor._obj.value = self.found
        return 0


@pytest.fixture
def without_value(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what a test sets is removed as well.
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)


@pytest.mark.parametrize("found", [HOPPER, None])
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int] | None) -> None:
    library = Library(found)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libnvidia-ml.so.1": library}[name])
    assert compute_capability() == found
    assert not library.open


def test_without_a_driver_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert compute_capability() is None


@pytest.mark.parametrize(
    ("words", "capability", "value"),
    [
        ([TENSOR], HOPPER, "1"),
        ([CONTEXT], (8, 0), "1"),
        ([TENSOR], BLACKWELL, None),
        ([TENSOR], None, None),
        ([], HOPPER, None),
        (["parallel.pipeline=2"], HOPPER, None),
        ([TENSOR, "execution.device=cpu"], HOPPER, None),
        ([TENSOR, "run.dry=true"], HOPPER, None),
    ],
)
@pytest.mark.usefixtures("without_value")
def test_the_layout_and_the_device_decide(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    capability: tuple[int, int] | None,
    value: str | None,
) -> None:
    monkeypatch.setattr(cuda_connections, "compute_capability", lambda: capability)
    # Of several jobs in one process, each counts.
    set_connections([composed(), composed(*words)])
    assert os.environ.get(VARIABLE) == value
    assert capfd.readouterr().err == ""


def test_another_value_stays_and_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cuda_connections, "compute_capability", lambda: HOPPER)
    monkeypatch.setenv(VARIABLE, "8")
    set_connections([composed()])
    assert capfd.readouterr().err == ""
    set_connections([composed(TENSOR)])
    assert os.environ[VARIABLE] == "8"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "warning: CUDA_DEVICE_MAX_CONNECTIONS=8: parallel.tensor=2 on a device of compute capability"
    )
    monkeypatch.setenv("RANK", "1")
    set_connections([composed(TENSOR)])
    assert capfd.readouterr().err == "", "one line, not one of each rank"


@pytest.mark.usefixtures("without_value")
def test_it_is_set_before_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_connections, "compute_capability", lambda: HOPPER)
    seen: list[str | None] = []
    monkeypatch.setattr(train, "_start", lambda *_: seen.append(os.environ.get(VARIABLE)) or 0)
    assert train._run_jobs([(composed(), 2), (composed(TENSOR), 2)], sweep=False) == 0
    assert seen == ["1", "1"]
