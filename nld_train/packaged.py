"""Folders that belong to the package without being part of it: configurations and launch scripts."""

from __future__ import annotations

from pathlib import Path

from nld_train.errors import UserError


def packaged_directory(name: str, file: str) -> Path:
    """A folder of the project: inside the package if it was installed from a wheel, beside it in a checkout.

    Args:
        name: of the folder.
        file: which it has.

    Raises:
        UserError: it is in neither.
    """
    package = Path(__file__).resolve().parent
    for directory in (package / name, package.parent / name):
        if (directory / file).is_file():
            return directory
    raise UserError(f"{name}/{file}: not found in {package} or beside it; install the package again")
