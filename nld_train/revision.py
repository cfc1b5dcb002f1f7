"""Which code is running: the version of this package and the commit that it stands at."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = "nld-train"
UNKNOWN = "unknown"
# Beside everything that this code writes: what `software` says.
SOFTWARE = "software.json"


def package_version() -> str | None:
    """Version of the installed package; None where the code runs without being installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The commit that this code stands at, with `-dirty` where it was changed since; None outside its repository."""
    # An installed copy may lie inside somebody else's repository, whose commit would say nothing.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*words: str) -> str | None:
    """What a git command says in this directory; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def software() -> dict[str, str]:
    """What `SOFTWARE` holds: `version` and `git_revision`, "unknown" where there is none."""
    return {"version": package_version() or UNKNOWN, "git_revision": git_revision() or UNKNOWN}
