"""A disk that refuses a file to one rank: all ranks leave with the same line, and none waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import run_ranks
from tiny_runs import SHORT, TINY_MODEL, data_overrides, short_stages

from nld_train.config.compose import compose_config
from nld_train.config.load import config_to_yaml

WORKER = Path(__file__).with_name("refused_worker.py")


@pytest.mark.parametrize(
    "file",
    [("megatron_save", "write_common"), pytest.param(("FileSystemWriterAsync", "finish"), marks=pytest.mark.long)],
)
def test_all_ranks_leave_together(token_set: str, tmp_path: Path, file: tuple[str, str]) -> None:
    settings = (*TINY_MODEL, *data_overrides(token_set), *SHORT, *short_stages(1, 1), "batch.micro_size=2")
    config = tmp_path / "config.yaml"
    config.write_text(config_to_yaml(compose_config([*settings, f"run.dir={tmp_path / 'run'}"])))
    done = run_ranks(2, [str(WORKER), str(config), *file], timeout=120)
    assert done.status == 0, done.output
    lines = [line for line in done.output.splitlines() if "could not be written by rank 0" in line]
    assert len(lines) == 2, done.output
    assert lines[0] == lines[1]
    assert "No space left on device" in lines[0]
