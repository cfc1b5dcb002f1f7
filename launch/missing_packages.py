"""Prints the pinned packages that an image still needs: `python launch/missing_packages.py`, in its Python.

What the image has stays as it is, above all torch, Transformer Engine and Apex, which NVIDIA builds for each other, and
whatever they need. Of the pinned environment only the rest is named, without what is only for tests, linters, notebooks
and the documentation site.
The image's Transformer Engine is one package, where the package index has several.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

_CONSTRAINTS = "constraints-py312.txt" if sys.version_info >= (3, 12) else "constraints.txt"
_ONLY_FOR_TESTS = re.compile(r"^(pytest|mypy|ruff|shellcheck|types-|cwevals|ast-serialize|librt|iniconfig|pluggy)")
_ONLY_FOR_DOCS = re.compile(
    r"^(mkdocs|griffelib|babel|backrefs|ghp-import|mergedeep|paginate|pymdown-extensions|pyyaml-env-tag|watchdog)"
)
_ONLY_FOR_NOTEBOOKS = re.compile(
    r"^(asttokens|comm|debugpy|executing|fastjsonschema|ipykernel|ipython|jedi|jsonschema|jupyter|matplotlib-inline|nbclient"
    r"|nbformat|nest-asyncio2|parso|pexpect|prompt-toolkit|ptyprocess|pure-eval|pyzmq|referencing|rpds-py|stack-data"
    r"|tornado|traitlets|wcwidth)"
)
_NOT_FOR_RUNS = (_ONLY_FOR_TESTS, _ONLY_FOR_DOCS, _ONLY_FOR_NOTEBOOKS)
_OF_THE_IMAGE = re.compile(r"^transformer-engine")
# This project is written against these: the image's own versions, if it has any, do not count.
_ALWAYS = ("megatron-core", "transformers", "huggingface-hub", "tokenizers", "safetensors")


def missing() -> list[str]:
    """Requirements such as `hydra-core==1.3.8`, for this Python."""
    lines = (Path(__file__).resolve().parents[1] / _CONSTRAINTS).read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    applicable = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return [f"{pin.name}{pin.specifier}" for pin in applicable if _is_missing(pin)]


def _is_missing(pin: Requirement) -> bool:
    if any(pattern.match(pin.name) for pattern in (*_NOT_FOR_RUNS, _OF_THE_IMAGE)):
        return False
    try:
        found = version(pin.name)
    except PackageNotFoundError:
        return True
    return pin.name in _ALWAYS and not pin.specifier.contains(found)


if __name__ == "__main__":
    print("\n".join(missing()))
