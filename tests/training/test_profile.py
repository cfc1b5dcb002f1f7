"""`execution.profile`: a trace of the named steps, with the parts of a step under their names; nothing otherwise."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_runs import SHORT, TINY_MODEL, composed, short_stages, train_here

from nld_train import profiling
from nld_train.config.schema import ProfileConfig
from nld_train.errors import UserError
from nld_train.profiling import profiled
from nld_train.training.loop.profile import NoProfile, StepProfile, make_profile
from nld_train.training.loop.timers import Timers

RUN = (*TINY_MODEL, *SHORT, *short_stages(2, 2), "batch.micro_size=2", "validation.every=2", "validation.samples=4")
CPU = torch.device("cpu")


def names_of(trace: Path) -> Counter[str]:
    """How often each range of ours or Megatron's is in a trace."""
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_a_trace_has_the_steps_and_the_names_of_their_parts(data: tuple[str, ...], tmp_path: Path) -> None:
    """Steps 2 to 3 are the last of one stage and the first of the next; two micro-batches each."""
    profile = ("execution.profile.first_step=2", "execution.profile.last_step=3")
    run = train_here(tmp_path, *data, *RUN, *profile)
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "rank_0.steps_2_to_3.pt.trace.json.gz"
    names = names_of(trace)
    assert names["ProfilerStep#2"] == names["ProfilerStep#3"] == 1
    assert not {"ProfilerStep#1", "ProfilerStep#4"} & names.keys()
    for name in ("wait for data", "micro-batches", "optimizer", "all-reduce of gradients", "forward-backward"):
        assert names[name] >= 2, name
    # Two micro-batches of each step, and two of the validation after step 2, the last one of its stage.
    assert names["backward"] == 4
    assert names["forward"] == names["head and cross-entropy"] == names["AR and diffusion loss"] == 4 + 2
    assert names["validation"] == names["save"] == 1
    assert "decoding" not in names


class Recorded:
    """What torch.cuda and Megatron are asked for, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from megatron.core import utils

        self.calls: list[str] = []
        note = self.calls.append
        memory = torch.cuda.memory
        monkeypatch.setattr(memory, "_record_memory_history", lambda enabled="all", **_: note(f"memory {enabled}"))
        monkeypatch.setattr(memory, "_dump_snapshot", lambda path: note(Path(path).name))
        monkeypatch.setattr(torch.cuda.profiler, "start", lambda: note("capture"))
        monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: note("end of capture"))
        monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name, **_: note(f"push {name}"))
        monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: note("pop"))
        monkeypatch.setattr(utils, "configure_nvtx_profiling", lambda enabled: note(f"layers {enabled}"))


def test_memory_and_ranges_begin_and_end_with_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    settings = ProfileConfig(first_step=3, last_step=3, trace=False, memory=True, nvtx=True)
    profile, timers = StepProfile(settings, 3, tmp_path, 5, torch.device("cuda", 0)), Timers(CPU)
    for step in range(1, 6):
        with profile.step(step), profiled("save"):
            timers("forward-compute", log_level=2).start()
            timers("something-new", log_level=1).start(barrier=True)
            timers("something-new").stop()
            timers("forward-compute").stop()
    profile.close()
    ranges = ["push ProfilerStep#3", "push save", "push forward", "push something-new", *4 * ["pop"]]
    ended = ["end of capture", "layers False", "rank_5.steps_3_to_3.memory.pickle", "memory None"]
    assert recorded.calls == ["memory all", "layers True", "capture", *ranges, *ended]
    assert profiled("a") is profiled("b"), "without a profile no object is made"
    assert profiling._annotate is None


def test_a_step_that_fails_is_written(tmp_path: Path) -> None:
    """What used up the memory is in the profile of the step in which it ran out."""
    profile = StepProfile(ProfileConfig(first_step=1, last_step=9), 1, tmp_path, 0, CPU)
    with profile.step(1), profiled("first"):
        pass
    with pytest.raises(torch.OutOfMemoryError), profile.step(2), profiled("second"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    names = names_of(tmp_path / "profile" / "rank_0.steps_1_to_2.pt.trace.json.gz")
    assert names["first"] == names["second"] == 1
    profile.close()
    assert len(list((tmp_path / "profile").iterdir())) == 1


def test_a_run_that_ends_before_the_last_step_writes_what_there_is(tmp_path: Path) -> None:
    profile = StepProfile(ProfileConfig(first_step=2, last_step=9), 2, tmp_path, 0, CPU)
    for step in (4, 5):  # a run that was resumed after the first step to be profiled
        with profile.step(step):
            pass
    profile.close()
    assert (tmp_path / "profile" / "rank_0.steps_4_to_5.pt.trace.json.gz").exists()


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile").write_text("a file")
    profile = StepProfile(ProfileConfig(first_step=1), 1, tmp_path, 0, CPU)
    with profile.step(1):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/profile/rank_0.steps_1_to_1: ")
    assert line.endswith("; the profile is not complete")


def test_only_the_named_ranks_have_one() -> None:
    config = composed("execution.profile.first_step=2", "execution.profile.ranks=[1,3]")
    assert [type(make_profile(config, rank, CPU)) is NoProfile for rank in range(4)] == [True, False, True, False]
    assert type(make_profile(composed(), 0, CPU)) is NoProfile


@pytest.mark.parametrize("name", ["memory", "nvtx"])
def test_what_only_a_gpu_has_is_refused_on_every_rank(name: str) -> None:
    config = composed("execution.profile.first_step=2", f"execution.profile.{name}=true")
    for rank in (0, 1):
        with pytest.raises(UserError, match=f"^execution.profile.{name}=true: needs a CUDA device; set false$"):
            make_profile(config, rank, CPU)
