"""The ids of a model, of its data and of its tokenizer: what contradicts is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shared import shared_folder
from tiny_runs import TINY_MODEL, composed, data_overrides

from nld_train.commands.data import main
from nld_train.config.compose import default_config
from nld_train.config.schema import ModelConfig
from nld_train.data.tokenizer import bytes_tokenizer, save_tokenizer, tokenizer_hash, train_bpe
from nld_train.data.vocabulary import (
    Vocabulary,
    check_special_ids,
    check_tokenizer,
    read_vocabulary,
    refuse_other_tokenizer,
    training_hashes,
)
from nld_train.errors import UserError
from nld_train.training.loop.preflight import check_files

OWN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}


def make(folder: Path) -> None:
    """A prepared set of bytes, `set.*`, its tokenizer, and another tokenizer of as many ids, `other`."""
    (folder / "text.txt").write_text("one text\n" * 400)
    arguments = ["prepare", folder / "text.txt", "--out", folder, "--name", "set", "--documents-per", "line"]
    assert main([*map(str, arguments), "--workers", "1"]) == 0
    save_tokenizer(train_bpe(["other"], 260), str(folder / "other"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory, "set-and-tokenizers", make)


def model(**changes: int) -> ModelConfig:
    return replace(default_config().model, **{"vocab_size": 260, **OWN, **changes})


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_says_its_ids(folder: Path, tmp_path: Path) -> None:
    assert read_vocabulary(str(folder / "tokenizer")) == Vocabulary(260, OWN)
    # As earlier versions of transformers wrote them: objects, and in another file.
    older = shutil.copytree(folder / "tokenizer", tmp_path / "older")
    named = {"eos_token": {"content": "</s>", "special": True}, "pad_token": "<nowhere>"}
    (older / "special_tokens_map.json").write_text(json.dumps({**named, "bos_token": "<pad>"}))
    (older / "tokenizer_config.json").write_text('{"bos_token": "<s>", "mask_token": null}')
    assert read_vocabulary(str(older)) == Vocabulary(260, {"eos_token_id": 2, "bos_token_id": 1})
    # A Unigram model lists its tokens.
    definition = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["</s>", 0.0]]}, "added_tokens": []}
    (older / "tokenizer.json").write_text(json.dumps(definition))
    assert read_vocabulary(str(older)) == Vocabulary(2, {"eos_token_id": 1})


@pytest.mark.parametrize(
    "definition", ['{"model": {}}', '{"model": {"vocab": {"a": 1.5}}}', '{"model": {"vocab": [1]}}']
)
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, definition: str) -> None:
    (tmp_path / "tokenizer.json").write_text(definition)
    assert f"{tmp_path}/tokenizer.json" in refusal(lambda: read_vocabulary(str(tmp_path)))


@pytest.mark.parametrize("key", OWN)
def test_a_special_id_that_is_not_the_tokenizers_is_refused(folder: Path, key: str) -> None:
    directory = str(folder / "tokenizer")
    check_tokenizer(directory, model(), "data.tokenizer")
    message = refusal(lambda: check_tokenizer(directory, model(**{key: 77}), "data.tokenizer"))
    assert message.startswith(f"model.{key}=77: ")
    assert f"set model.{key}={OWN[key]}" in message


def test_an_end_of_document_that_is_not_the_sets_is_refused(folder: Path, tmp_path: Path) -> None:
    """Also where the tokenizer is gone; the other ids are compared while it is there."""
    prefix = str(folder / "set")
    check_special_ids(prefix, model(), None)
    assert "model.eos_token_id=9" in refusal(lambda: check_special_ids(prefix, model(eos_token_id=9), None))
    assert "model.bos_token_id=9" in refusal(lambda: check_special_ids(prefix, model(bos_token_id=9), None))
    for path in folder.glob("set.*"):
        shutil.copy(path, tmp_path)
    moved = str(tmp_path / "set")
    check_special_ids(moved, model(bos_token_id=9), None)
    message = refusal(lambda: check_special_ids(moved, model(eos_token_id=9), None))
    assert "documents" in message
    assert "set model.eos_token_id=2" in message


def test_training_refuses_ids_that_contradict(folder: Path, tmp_path: Path) -> None:
    """With the tokenizer and without; as the first thing, so nothing is written."""

    def start(*overrides: str) -> None:
        data = data_overrides(str(folder / "set"))
        check_files(composed(*TINY_MODEL, *data, "model.vocab_size=260", f"run.dir={tmp_path}/run", *overrides))

    tokenizer = f"data.tokenizer={folder}/tokenizer"
    for given in ("data.tokenizer=null", tokenizer):
        for key in ("eos_token_id", "pad_token_id"):
            assert f"model.{key}=9" in refusal(lambda: start(given, f"model.{key}=9"))  # noqa: B023
    assert not (tmp_path / "run").exists()
    start(tokenizer)
    # A set of Megatron's own tools has no manifest: the tokenizer is what is left to compare.
    for suffix in (".bin", ".idx"):
        shutil.copy(folder / f"set{suffix}", tmp_path)
    alone = f"data.train=[{{prefix: {tmp_path}/set, weight: 1}}]"
    same = alone.replace("data.train", "data.validation")
    assert "model.eos_token_id=9" in refusal(lambda: start(alone, same, tokenizer, "model.eos_token_id=9"))
    assert "260 ids and the model 70" in refusal(lambda: start(alone, same, tokenizer, "model.vocab_size=70"))


def test_another_tokenizer_than_that_of_the_training_is_refused(folder: Path, tmp_path: Path) -> None:
    own, other = folder / "tokenizer", str(folder / "other")
    copy = str(shutil.copytree(own, tmp_path / "copy"))

    def check(given: str, own: list[Path], known: list[str], **changes: int) -> None:
        refuse_other_tokenizer(given, "--tokenizer", own, known, model(**changes))

    check(copy, [tmp_path / "nowhere", own], [], eos_token_id=9)
    assert "--tokenizer: " in refusal(lambda: check(other, [own], []))
    # Of a checkpoint without a copy, the data say it.
    known = training_hashes([str(folder / "set"), str(tmp_path / "none")])
    assert known == [tokenizer_hash(str(own))]
    check(copy, [tmp_path], known)
    assert "another tokenizer" in refusal(lambda: check(other, [tmp_path], known))
    # And without these the ids.
    check(other, [tmp_path], [])
    assert "model.eos_token_id=9" in refusal(lambda: check(other, [tmp_path], [], eos_token_id=9))
    assert "260 ids and the model 67" in refusal(lambda: check(other, [tmp_path], [], vocab_size=67))


@pytest.mark.parametrize("command", ["inspect", "prompts"])
def test_a_set_is_not_shown_with_another_tokenizer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = ["--out", str(tmp_path / "prompts.jsonl"), "--count", "1", "--tokens", "3"]
    words = [command, str(folder / "set"), *(out if command == "prompts" else ["--sample", "0"]), "--tokenizer"]
    capsys.readouterr()
    assert main([*words, str(folder / "other")]) == 2
    assert "was prepared with another tokenizer" in capsys.readouterr().err
    save_tokenizer(bytes_tokenizer(), str(tmp_path / "copy"))
    assert main([*words, str(tmp_path / "copy")]) == 0
