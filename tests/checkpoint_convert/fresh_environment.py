"""A virtual environment that holds some distributions and what they need, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def make_environment(directory: Path, *wanted: str) -> Path:
    """Makes an environment; returns its Python.

    The distributions are those of this environment, linked into the new one: the pinned versions, without a package
    index. What is not among the declared needs of `wanted`, direct and indirect, is not there.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    for found in _closure(wanted):
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():  # a namespace that several distributions share
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return directory / "bin" / "python"


def _closure(wanted: tuple[str, ...]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in wanted]
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
