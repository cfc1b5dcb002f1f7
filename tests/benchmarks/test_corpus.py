"""Benchmarks that read the quickstart's corpus, on a clone that has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import TINY_MODEL, data_overrides, write_token_set

from benchmarks import corpus, step

SMALL = ("execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")


def test_a_corpus_is_prepared_only_where_the_default_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Path] = []
    monkeypatch.setattr(corpus, "prepare", prepared.append)
    monkeypatch.chdir(tmp_path)
    with corpus.with_corpus(["run.seed=1"]) as words:
        (folder,) = prepared
        assert words == [
            f"data.train=[{{prefix: {folder}/stdlib-train, weight: 1}}]",
            f"data.validation=[{{prefix: {folder}/stdlib-validation, weight: 1}}]",
            f"data.tokenizer={folder}/tokenizer",
            "run.seed=1",
        ]
    assert not folder.exists()
    own = list(data_overrides(str(tmp_path / "missing")))
    with corpus.with_corpus(own) as words:
        assert words == own
    (tmp_path / "data/stdlib").mkdir(parents=True)
    (tmp_path / "data/stdlib/stdlib-train.idx").touch()
    with corpus.with_corpus([]) as words:
        assert words == []
    assert prepared == [folder]


def test_a_step_over_a_corpus_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement of the preparation writes a small set under the same names."""

    def prepare(folder: Path) -> None:
        for part in ("train", "validation"):
            write_token_set(folder / f"stdlib-{part}", seed=1)

    monkeypatch.setattr(corpus, "prepare", prepare)
    monkeypatch.chdir(tmp_path)
    words = [*TINY_MODEL, *SMALL, "data.tokenizer=null"]
    step.main(["--steps", "1", "--warmup", "0", "--results", str(tmp_path), *words])
    found = json.loads((tmp_path / "step.json").read_text())["figures"]
    assert found["tokens"] == 64
    assert found["target"] == 1.25


@pytest.mark.long
def test_the_prepared_corpus_is_the_quickstarts(tmp_path: Path) -> None:
    corpus.prepare(tmp_path)
    assert {path.name for path in tmp_path.glob("*.idx")} == {"stdlib-train.idx", "stdlib-validation.idx"}
    assert (tmp_path / "tokenizer").is_dir()
