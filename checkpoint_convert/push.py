"""`nld-convert push`: uploads an export to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from nld_train.config.hub import check_repository
from nld_train.errors import UserError
from nld_train.printable import say
from nld_train.training.checkpoint.hub import hub_errors
from nld_train.training.checkpoint.paths import is_hugging_face

# Of an export everything is uploaded; these can lie in it besides.
_LEFT_OUT = (".*", "*/.*", "*.tmp", "__pycache__/*", "*.pyc")


def check(directory: Path, repository: str) -> None:
    """Checks an upload before anything is sent.

    Raises:
        UserError: DIR is no export, REPO is no name of a repository, or nobody is logged in.
    """
    check_repository(repository, f"REPO {repository}")
    if not is_hugging_face(directory):
        raise UserError(
            f"{directory}: is no export, nothing to push; nld-convert export RUN DIR --format nld makes one"
        )
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory}: has no weights (*.safetensors)")
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError("nobody is logged in to the Hugging Face Hub: `hf auth login`, or set HF_TOKEN")


def push(directory: Path, repository: str, private: bool, revision: str | None, message: str) -> str:
    """Makes the repository where there is none, and commits every file of an export to it.

    Files that the repository has already, with the same content, are not sent again, so that a push that was
    interrupted goes on where it stopped. Other files of the repository stay.

    Args:
        directory: of the export.
        repository: `ORG/NAME`.
        private: whether a new repository is private; an existing one stays as it is.
        revision: a branch; it is made where there is none. None for the default branch.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(f"REPO {repository}", "cannot be pushed to"):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        found = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            revision=revision,
            commit_message=message,
            ignore_patterns=list(_LEFT_OUT),
        )
    address = str(found.commit_url)
    say(address)
    return address
