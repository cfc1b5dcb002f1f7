"""Which code is running: the version of this package and its git commit."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = "nld-train"
UNKNOWN = "unknown"
# File with the result of `software`, beside everything that this code writes.
SOFTWARE = "software.json"


def package_version() -> str | None:
    """Version of the installed package; None where the code runs without being installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The commit of this code, with `-dirty` where it was changed since; None outside its repository."""
    # An installed copy may be inside another project's repository.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*words: str) -> str | None:
    """Output of a git command in this directory; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version_line() -> str:
    """What `--version` prints in every command."""
    return f"{PACKAGE} {package_version() or UNKNOWN} (commit {git_revision() or UNKNOWN})"


def software() -> dict[str, str]:
    """The content of `SOFTWARE`: `version` and `git_revision`, "unknown" where there is none."""
    return {"version": package_version() or UNKNOWN, "git_revision": git_revision() or UNKNOWN}
