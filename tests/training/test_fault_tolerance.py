"""`execution.fault_tolerance`: heartbeats after each part of a step, and a real launcher that restarts what hangs."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from tiny_runs import SHORT, TINY_MODEL, composed, records_of, run_python, short_stages, train_here

from nld_train.errors import UserError
from nld_train.training.loop import heartbeats
from nld_train.training.loop.heartbeats import MONITOR
from nld_train.training.loop.preflight import check_paths

ON = "execution.fault_tolerance=true"
RUN = (*TINY_MODEL, *SHORT, *short_stages(3, 1), "run.stages=[ar]")


class Monitored:
    """The client of the package, and what its monitor hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[str] = []
        self.gone = False
        module = ModuleType("nvidia_resiliency_ext.fault_tolerance")
        monkeypatch.setattr(module, "RankMonitorClient", lambda: self, raising=False)
        monkeypatch.setitem(sys.modules, "nvidia_resiliency_ext", ModuleType("nvidia_resiliency_ext"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(heartbeats, "find_spec", lambda _: True)
        monkeypatch.setenv(MONITOR, "/tmp/a-socket")

    def init_workload_monitoring(self) -> None:
        if self.gone:
            raise ConnectionRefusedError("nobody listens")
        self.heard.append("begin")

    def send_heartbeat(self) -> None:
        if self.gone:
            raise BrokenPipeError("it has gone")
        self.heard.append("beat")

    def shutdown_workload_monitoring(self) -> None:
        self.heard.append("end")


def test_a_run_beats_after_each_step_hook_and_checkpoint(
    data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps, a validation after the second and the last, and a checkpoint after the last."""
    monitored = Monitored(monkeypatch)
    train_here(tmp_path, *data, *RUN, ON, "validation.every=2", "validation.samples=4", "checkpoint.every=10")
    assert monitored.heard == ["begin", *(3 + 2 + 1) * ["beat"], "end"]


def test_a_monitor_that_goes_is_one_warning(
    data: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monitored = Monitored(monkeypatch)
    with heartbeats.heartbeats(composed(*data, ON)) as beat:
        beat()
        monitored.gone = True
        beat()
        monitored.gone = False
        beat()
    assert monitored.heard == ["begin", "beat", "end"]
    assert capfd.readouterr().err == "warning: the monitor of this process does not answer (it has gone)\n"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, data: tuple[str, ...]) -> None:
    config, key = composed(*data, ON), "^execution.fault_tolerance=true: "
    monkeypatch.delenv(MONITOR, raising=False)
    monkeypatch.setattr(heartbeats, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"{key}needs the package nvidia-resiliency-ext; install nld-train"):
        check_paths(config)
    monkeypatch.setattr(heartbeats, "find_spec", lambda _: True)
    with pytest.raises(UserError, match=f"{key}ft_launcher has not started this process"):
        check_paths(config)
    check_paths(composed(*data))
    Monitored(monkeypatch).gone = True
    with (
        pytest.raises(UserError, match=rf"{key}no monitor answers \(nobody listens\)"),
        heartbeats.heartbeats(config),
    ):
        pass


@pytest.mark.long
@pytest.mark.skipif(find_spec("nvidia_resiliency_ext") is None, reason="nvidia-resiliency-ext is not installed")
def test_the_real_launcher_restarts_a_rank_that_hangs(data: tuple[str, ...], tmp_path: Path) -> None:
    """Rank 1 hangs after step 2 of the first start, in a hook; the second start continues from the checkpoint."""
    launcher = ["-m", "nvidia_resiliency_ext.fault_tolerance.launcher", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", "1", "--ft-initial-rank-heartbeat-timeout", "300"]
    launcher += ["--ft-rank-heartbeat-timeout", "20", "--ft-workload-check-interval", "1", "-m", "nld_train.train"]
    hook = "run.hooks=['tests.training.hanging_hook:HangingHook']"
    words = [*data, *RUN, ON, hook, f"run.dir={tmp_path}", "batch.micro_size=2", "checkpoint.every=1"]
    done = run_python([*launcher, *words], timeout=500)
    assert done.status == 0, done.output
    assert "Did not get subsequent heartbeat" in done.output
    assert [record["step"] for record in records_of(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "hung").read_text() == "after step 2"
