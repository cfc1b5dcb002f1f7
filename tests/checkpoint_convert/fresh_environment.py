"""A virtual environment with some distributions and their dependencies only."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def make_environment(directory: Path, *distributions: str) -> Path:
    """Makes an environment; returns its Python.

    The distributions are those of this environment, linked into the new one: the pinned versions, without a package
    index. Only direct and indirect dependencies of `distributions` are there.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    for found in _closure(distributions):
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():  # a namespace that several distributions share
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return directory / "bin" / "python"


def _closure(distributions: tuple[str, ...]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in distributions]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        found[name] = distribution(name)
        for child in map(Requirement, found[name].requires or ()):
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if child.marker is None or any(map(child.marker.evaluate, extras)):
                waiting.append(child)
    return [found[name] for name in sorted(found)]
