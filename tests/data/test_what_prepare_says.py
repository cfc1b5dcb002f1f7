"""What `nld-data prepare` says while it works and when it is finished."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pytest
from counting_work import CountingWork
from tiny_runs import composed

from nld_train.commands.data import main
from nld_train.data.manifest import check_against_model
from nld_train.data.sample_sets import require_kinds_of_data
from nld_train.data.shards import ShardJob, encode_shards
from nld_train.data.sources import SourceSettings, plan_shards
from nld_train.data.tokenizer import bytes_tokenizer, own_spec
from nld_train.data.workers import run_jobs


def last_line(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[str]:
    """The words of the command in the last line of `nld-data prepare`."""
    assert main(["prepare", *map(str, words), "--workers", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("use in a run: nld-train ")
    return shlex.split(line.removeprefix("use in a run: nld-train "))


@pytest.mark.parametrize("out", ["out", "with space", "it's [a] {set}, $x"])
def test_the_last_line_is_the_run_that_uses_the_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("\n".join(f"{name}: line {number}" for number in range(50)))
    words = ["a.txt", "b.txt", "--out", out, "--documents-per", "line", "--validation", "0.2"]
    overrides = last_line(capsys, *words, "--tokenizer", "train-bpe:270")
    config = composed(*overrides)
    assert [source.prefix for source in config.data.train] == [f"{out}/a-train"]
    assert [source.prefix for source in config.data.validation] == [f"{out}/a-validation"]
    assert config.model.vocab_size == 270
    for source in (*config.data.train, *config.data.validation):
        check_against_model(source.prefix, config.model.vocab_size, config.model.mask_token_id, config.data.tokenizer)
    assert last_line(capsys, *words, "--tokenizer", "train-bpe:270") == overrides  # "already prepared"


def test_without_validation_the_run_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    config = composed(*last_line(capsys, tmp_path / "a.txt", "--out", tmp_path / "out"))
    assert not config.data.validation
    assert config.validation.every == config.evaluation.every == 0
    given = ["--tokenizer", tmp_path / "out/tokenizer", "--name", "other"]
    words = last_line(capsys, tmp_path / "a.txt", "--out", tmp_path / "out", *given)
    assert not [word for word in words if word.startswith("model.")]  # a model has the tokenizer's vocabulary already


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_a_single_file_shows_progress_while_it_is_encoded(tmp_path: Path, name: str) -> None:
    import gzip

    lines = "".join(f'{{"text": "{number} {"some text " * 100}"}}\n' for number in range(5000)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(lines, 0, mtime=0) if name.endswith(".gz") else lines)
    settings = SourceSettings(documents_per="line")
    shards = plan_shards([str(path)], settings)
    assert len(shards) == 1
    steps: list[int] = []
    job = ShardJob(settings, own_spec(bytes_tokenizer(), True), 0.1, tmp_path)
    encode_shards(job, shards, 1, steps.append)
    assert sum(steps) == path.stat().st_size
    assert len([step for step in steps if step]) >= 5
    assert max(steps) < path.stat().st_size / 3
    again: list[int] = []
    encode_shards(job, shards, 1, again.append)
    assert again == [path.stat().st_size]


def test_workers_report_progress_before_their_jobs_are_finished() -> None:
    steps: list[int] = []
    results = sorted(run_jobs(partial(CountingWork, 10), [1, 2, 3], 2, steps.append))
    assert results == [10, 20, 30]
    assert sum(steps) == 60
    assert len([step for step in steps if step]) > 3


def test_conversations_are_used_by_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f'{{"prompt": "question {number}", "completion": "answer {number}"}}\n' for number in range(40))
    (tmp_path / "a.jsonl").write_text(rows)
    words = [tmp_path / "a.jsonl", "--out", tmp_path / "out", "--chat", "--validation", "0.2"]
    config = composed(*last_line(capsys, *words))
    assert config.run.stages == ("sft",)
    assert [source.prefix for source in config.data.train] == [f"{tmp_path}/out/a-train"]
    require_kinds_of_data(config)
    assert config.init.checkpoint == "CHECKPOINT"
