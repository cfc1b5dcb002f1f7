"""The Hugging Face Hub: pushing an export, and starting a run from a model there, through a server on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_hub import TOKEN, LocalHub, local_hub
from refusals import refused
from tiny_runs import newest_checkpoint, saved_tensors
from trained_runs import train_on

from checkpoint_convert.cli import main
from nld_train.config.hub import HubModel, hub_model
from nld_train.errors import UserError
from nld_train.training.checkpoint.hub import initial_path

NAME = "somebody/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The server, a user who is logged in there, and an empty cache."""
    with local_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.address)
        files = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        # Its storage protocol is not imitated; files of any size can be uploaded without it.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


def test_a_pushed_export_is_a_start(
    hub: LocalHub,
    trained: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """File by file; the run has the weights of one that starts from the directory, and asks the Hub only once."""
    export = shutil.copytree(exports["nld"], tmp_path / "export")
    (export / ".secret").write_text("not for others")
    assert main(["push", str(export), NAME, "--private"]) == 0
    assert capsys.readouterr().out == f"{hub.address}/{NAME}/commit/{hub.commit(NAME)}\n"
    expected = {str(path.relative_to(export)): path.read_bytes() for path in export.rglob("*") if path.is_file()}
    assert hub.repositories[NAME] == {name: body for name, body in expected.items() if name != ".secret"}
    assert hub.private == {NAME}

    fetched = train_on(trained.parent, tmp_path / "fetched", Path(f"hub:{NAME}"))
    commit = hub.commit(NAME)
    assert f"from hub:{NAME} (commit {commit})" in (fetched / "run.log").read_text()
    downloaded = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert "config.json" in downloaded
    assert not [name for name in downloaded if name.endswith(".py")]
    local = saved_tensors(newest_checkpoint(train_on(trained.parent, tmp_path / "local", export)))
    for key, value in saved_tensors(newest_checkpoint(fetched)).items():
        assert torch.equal(local[key], value), key

    hub.requests.clear()
    assert initial_path(f"hub:{NAME}") == initial_path(f"hub:{NAME}@{commit}")
    assert hub.requests == []


def test_a_cached_part_is_completed(hub: LocalHub) -> None:
    """Another program may have read the settings of a model alone."""
    from huggingface_hub import hf_hub_download

    weights = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    hub.repositories[NAME] = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(weights).encode(),
        "model-1.safetensors": b"one",
        "model-2.safetensors": b"two",
        "consolidated.safetensors": b"both again",
    }
    hf_hub_download(NAME, "config.json")
    hf_hub_download(NAME, "model.safetensors.index.json")
    found = initial_path(f"hub:{NAME}")
    assert (found / "model-2.safetensors").read_bytes() == b"two"
    assert not (found / "consolidated.safetensors").exists()


def test_what_cannot_be_fetched_is_one_line(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^init.checkpoint=hub:nobody/none: there is no such model, or it is private"):
        initial_path("hub:nobody/none")
    hub.repositories[NAME] = {"config.json": b"{}"}
    with pytest.raises(UserError, match=rf"^init.checkpoint=hub:{NAME}@old: the model has no such revision"):
        initial_path(f"hub:{NAME}@old")
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", nobody)
    with pytest.raises(UserError, match=rf"^init.checkpoint=hub:{NAME}: cannot be downloaded: .*[^\n]$"):
        initial_path(f"hub:{NAME}")


def test_a_push_that_is_refused_is_one_line(
    hub: LocalHub,
    exports: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(directory: Path, name: str) -> str:
        return refused(capsys, ["push", str(directory), name], tmp_path / "anything")

    assert "is no export" in said(tmp_path, NAME)
    assert "must be ORG/NAME" in said(exports["nld"], "name")
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    assert f"REPO {NAME}: cannot be pushed to: " in said(exports["nld"], NAME)
    assert hub.repositories == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "nobody is logged in" in said(exports["nld"], NAME)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hub:a/b", HubModel("a/b", None)),
        ("hub:mistralai/Ministral-3-8B-Base-2512@v1.0", HubModel("mistralai/Ministral-3-8B-Base-2512", "v1.0")),
        ("runs/hub:a", None),
    ],
)
def test_names(value: str, expected: HubModel | None) -> None:
    assert hub_model(value, "key") == expected
    assert expected is None or str(expected) == value


@pytest.mark.parametrize("value", ["hub:", "hub:name", "hub:a/b/c", "hub:../b", "hub:a/b@", "hub:a/b c"])
def test_wrong_names(value: str) -> None:
    with pytest.raises(UserError, match="must be hub:ORG/NAME"):
        hub_model(value, "init.checkpoint")
