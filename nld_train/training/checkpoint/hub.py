"""Models of the Hugging Face Hub as starting weights: out of its local cache, else downloaded into that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nld_train.config.hub import HubModel, hub_model
from nld_train.errors import UserError
from nld_train.outside_json import read_object
from nld_train.printable import one_line

KEY = "init.checkpoint"
# What a run reads: settings, tokenizer and weights. No code, and no second copy of the weights in another form.
_READ = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
_NOT_READ = ("consolidated*", "original/*", "*.gguf", "onnx/*")
_INDEX = "model.safetensors.index.json"


def initial_path(named: str) -> Path:
    """The path that `init.checkpoint` names: itself, or the local copy of a model on the Hub.

    A cached copy is taken without asking the Hub, also where the Hub has a newer one: a run that is started again has
    the weights of its first start. Processes that ask at the same time wait for one download.

    Raises:
        UserError: there is no such model, it cannot be read, or the Hub cannot be reached.
    """
    model = hub_model(named, KEY)
    if model is None:
        return Path(named)
    return _cached(model) or _downloaded(model)


def commit_of(named: str, path: Path | None) -> str:
    """`init.checkpoint` as a log names it: of a model on the Hub also the commit that was taken."""
    return named if path is None or hub_model(named, KEY) is None else f"{named} (commit {path.name})"


def _cached(model: HubModel) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = _snapshot(model, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return found if _holds_model(found) else None


def _holds_model(directory: Path) -> bool:
    """Whether the weights are there: other programs may have cached a part of the repository."""
    if not (directory / "config.json").is_file():
        return False
    if not (directory / _INDEX).is_file():
        return any(directory.glob("*.safetensors"))
    shards = read_object(directory / _INDEX).get("weight_map")
    return isinstance(shards, dict) and all((directory / str(name)).is_file() for name in shards.values())


def _downloaded(model: HubModel) -> Path:
    with hub_errors(f"{KEY}={model}", "cannot be downloaded"):
        return _snapshot(model)


def _snapshot(model: HubModel, **settings: Any) -> Path:
    from huggingface_hub import snapshot_download

    allowed: dict[str, Any] = {"allow_patterns": list(_READ), "ignore_patterns": list(_NOT_READ)}
    return Path(snapshot_download(model.repository, revision=model.revision, **allowed, **settings))


@contextmanager
def hub_errors(what: str, failed: str) -> Iterator[None]:
    """Turns what the client of the Hub raises into one line.

    Args:
        what: the setting or argument that names the repository.
        failed: what could not be done, where there is no better reason.

    Raises:
        UserError: any of the errors below was raised.
    """
    from huggingface_hub import errors

    # Of the library that it sends requests with, which differs between its versions.
    transport_error = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{what}: access is restricted; ask for it on the model's page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{what}: there is no such model, or it is private: log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what}: the model has no such revision") from error
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, transport_error, OSError) as error:
        raise UserError(f"{what}: {failed}: {one_line(str(error))}") from error
